# SPDX-License-Identifier: Apache-2.0
# cmake -DWORDS=... -P refuses.cmake -- COMMAND...: COMMAND must fail, and the first error be a
# static_assert that says WORDS.
cmake_minimum_required(VERSION 3.21)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  list(APPEND command ${CMAKE_ARGV${i}})
endforeach()
list(FIND command -- separator)
math(EXPR first "${separator} + 1")
list(SUBLIST command ${first} -1 command)

execute_process(COMMAND ${command} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
string(REGEX MATCH "error: [^\n]*" first_error "${output}")
string(FIND "${first_error}" "${WORDS}" position)
if(result EQUAL 0 OR NOT first_error MATCHES "static.assert" OR position EQUAL -1)
  message(FATAL_ERROR "expected a static_assert saying: ${WORDS}\nresult ${result}, output:\n${output}")
endif()
