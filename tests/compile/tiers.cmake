# SPDX-License-Identifier: Apache-2.0
# cmake -DINCLUDE_DIR=... -P tiers.cmake: fails if a header includes what its folder may not. Every header is held to
# its own folder's rule, so the rules hold for whatever it includes in turn.
cmake_minimum_required(VERSION 3.21)

set(std "[a-z_0-9]+")
set(tier_0 "skim/([a-z_0-9]+|(selector|evictor|neuron_selector|math|reference)/[a-z_0-9]+)\\.hpp")
set(cpu "skim/cpu/(simd/)?[a-z_0-9]+\\.hpp")
set(cuda "(cuda|cublas|cute|mma|cooperative_groups|nv/)[a-z_0-9/]*(\\.h|\\.hpp)?")

# Headers for users only: one would bring everything, the other oneTBB.
set(never_included skim/skim.hpp skim/interop/tbb.hpp)

# place, and what it may include; the first place that matches counts
set(rules
    "skim/skim\\.hpp"                  "${tier_0}|${cpu}"
    "skim/cpu/executor_tbb\\.hpp"      "${std}|${tier_0}|${cpu}|(oneapi/)?tbb/.*"
    "skim/cpu/simd/.*"                 "${std}|${tier_0}|${cpu}|xsimd/.*|immintrin\\.h|arm_neon\\.h|unistd\\.h|sys/syscall\\.h"
    "skim/cpu/.*"                      "${std}|${tier_0}|${cpu}|xsimd/.*"
    "skim/interop/eigen\\.hpp"         "${std}|${tier_0}|${cpu}|Eigen/.*"
    "skim/interop/safetensors(_writer)?\\.hpp"  "${std}|${tier_0}|nlohmann/.*|skim/interop/safetensors\\.hpp"
    "skim/interop/fastforward_file\\.hpp"
      "${std}|${tier_0}|nlohmann/.*|skim/calibrate/fitted\\.hpp|skim/interop/safetensors(_writer)?\\.hpp"
    "skim/calibrate/fitted\\.hpp"     "${std}|${tier_0}"  # an engine that only loads needs no Eigen
    "skim/calibrate/.*"                "${std}|${tier_0}|${cpu}|Eigen/.*|skim/(calibrate/.*|interop/eigen\\.hpp)"
    "skim/testing/.*"                  "${std}|${tier_0}|${cpu}|g(test|mock)/.*|skim/testing/.*"
    "skim/cuda/.*"                     "${std}|${tier_0}|${cuda}|skim/cuda/.*"
    "${tier_0}"                        "${std}|${tier_0}"
    ".*"                               "nothing: the folder belongs to no tier")

file(GLOB_RECURSE headers RELATIVE ${INCLUDE_DIR} ${INCLUDE_DIR}/*.hpp ${INCLUDE_DIR}/*.cuh)
set(broken "")
foreach(header IN LISTS headers)
  set(places ${rules})
  while(TRUE)
    list(POP_FRONT places place allowed)
    if(header MATCHES "^(${place})$")
      break()
    endif()
  endwhile()
  file(STRINGS ${INCLUDE_DIR}/${header} lines REGEX "^[ \t]*#[ \t]*include")
  foreach(line IN LISTS lines)
    # Angle brackets only: a quoted include would depend on where the including file lies.
    string(REGEX REPLACE "^[ \t]*#[ \t]*include[ \t]*<([^>]*)>.*" "\\1" included "${line}")
    if(NOT included MATCHES "^(${allowed})$" OR included IN_LIST never_included)
      string(APPEND broken "${header} includes ${included}\n")
    endif()
  endforeach()
endforeach()
if(broken OR NOT headers)
  message(FATAL_ERROR "Against the tiers:\n${broken}")
endif()
