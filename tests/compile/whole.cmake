# SPDX-License-Identifier: Apache-2.0
# cmake -DROOT=... -P whole.cmake: fails if skim.hpp, with all that it includes in turn, leaves out a header of tier 0 or a
# public one of cpu/. Those of reference/ are for tests; cpu/dispatch*.hpp, which needs levels to link with, is the other door.
cmake_minimum_required(VERSION 3.21)
include(${CMAKE_CURRENT_LIST_DIR}/tier_0.cmake)

set(reached skim/skim.hpp)
set(unread ${reached})
while(unread)
  list(POP_FRONT unread header)
  file(STRINGS ${ROOT}/include/${header} lines REGEX "^[ \t]*#[ \t]*include[ \t]*<skim/")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE ".*<([^>]*)>.*" "\\1" included "${line}")
    if(NOT included IN_LIST reached)
      list(APPEND reached ${included})
      list(APPEND unread ${included})
    endif()
  endforeach()
endwhile()

file(GLOB_RECURSE headers RELATIVE ${ROOT}/include ${ROOT}/include/*.hpp)
list(FILTER headers INCLUDE REGEX "^(${tier_0}|${public_cpu})$")
list(FILTER headers EXCLUDE REGEX "^skim/(reference/|cpu/dispatch)")
list(REMOVE_ITEM headers ${reached})
if(headers)
  list(JOIN headers ", " missing)
  message(FATAL_ERROR "skim/skim.hpp leaves out ${missing}")
endif()
