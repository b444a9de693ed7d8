# SPDX-License-Identifier: Apache-2.0
# cmake -DROOT=... -P tiers.cmake: fails if a header below ROOT/include includes what its folder may not, or a program of
# a user's kind, in ROOT/examples or ROOT/tests/package, what is read but not included. Every header is held to its own
# folder's rule, so the rules hold for whatever it includes in turn.
cmake_minimum_required(VERSION 3.21)
include(${CMAKE_CURRENT_LIST_DIR}/tier_0.cmake)

set(std "[a-z_0-9]+")
set(cuda "(cuda|cublas|cute|mma|cooperative_groups|nv/)[a-z_0-9/]*(\\.h|\\.hpp)?")

# The folders of cpu/, each of which may include those before it: no include runs up.
set(name "[a-z_0-9]+\\.hpp")
set(simd "${std}|${tier_0}|skim/cpu/simd/${name}")
set(kernel "${simd}|skim/cpu/kernel/${name}")
set(hooks "skim/cpu/score_kernel\\.hpp")
set(policy_kernels "${kernel}|${hooks}|skim/cpu/(${policies})/${name}")
set(operations "${policy_kernels}|skim/cpu/${name}")

# place, and what it may include; the first place that matches counts
set(rules
    "skim/skim\\.hpp"                 "${tier_0}|${public_cpu}"
    "skim/cpu/features\\.hpp"         "${simd}|unistd\\.h|sys/syscall\\.h"
    "skim/cpu/dispatch\\.hpp"          "${std}|${tier_0}"  # a host's units parse no SIMD code
    "skim/cpu/simd/.*"                "${simd}|xsimd/.*|immintrin\\.h|arm_neon\\.h"
    "skim/cpu/kernel/.*"              "${kernel}"
    "${hooks}"                        "${simd}|${hooks}"
    "skim/cpu/(${policies})/.*"       "${policy_kernels}"
    "skim/cpu/.*"                     "${operations}"
    "skim/interop/tbb\\.hpp"          "${std}|${tier_0}|(oneapi/)?tbb/.*"
    "skim/interop/eigen\\.hpp"        "${std}|${tier_0}|Eigen/.*"
    "skim/interop/safetensors(_writer|_shards)?\\.hpp"  "${std}|${tier_0}|nlohmann/.*|skim/interop/(mapped_file|safetensors)\\.hpp"
    "skim/interop/(fitted_fastforward|mask_reader)\\.hpp"  "${std}|${tier_0}"  # an engine that only loads needs no Eigen
    "skim/interop/mapped_file\\.hpp"  "${std}|${tier_0}|fcntl\\.h|sys/mman\\.h|unistd\\.h"
    "skim/interop/gguf(_blocks|_parts)?\\.hpp"  "${std}|${tier_0}|skim/interop/(mapped_file|gguf|gguf_parts)\\.hpp"
    "skim/interop/ggml_operands\\.hpp"  "${std}|${tier_0}|ggml\\.h"
    "skim/interop/ggml\\.hpp"  "${std}|${tier_0}|skim/interop/(ggml_operands|mask_reader)\\.hpp"
    "skim/interop/ggml_linear\\.hpp"  "${std}|${tier_0}|skim/interop/ggml_operands\\.hpp"
    "skim/interop/fastforward_file\\.hpp"
      "${std}|${tier_0}|nlohmann/.*|skim/interop/(fitted_fastforward|safetensors(_writer)?)\\.hpp"
    "skim/calibrate/.*"
      "${std}|${tier_0}|${public_cpu}|Eigen/.*|skim/(calibrate/.*|interop/(eigen|fitted_fastforward)\\.hpp)"
    "skim/testing/.*"                 "${std}|${tier_0}|${public_cpu}|g(test|mock)/.*|skim/testing/.*"
    "skim/cuda/.*"                    "${std}|${tier_0}|${cuda}|skim/cuda/.*"
    "${tier_0}"                       "${std}|${tier_0}"
    ".*"                              "nothing: the folder belongs to no tier")

set(broken "")
file(GLOB_RECURSE headers RELATIVE ${ROOT}/include ${ROOT}/include/*.hpp ${ROOT}/include/*.cuh)
foreach(header IN LISTS headers)
  set(places ${rules})
  while(TRUE)
    list(POP_FRONT places place allowed)
    if(header MATCHES "^(${place})$")
      break()
    endif()
  endwhile()
  file(STRINGS ${ROOT}/include/${header} lines REGEX "^[ \t]*#[ \t]*include")
  foreach(line IN LISTS lines)
    # Angle brackets only: a quoted include would depend on where the including file lies.
    string(REGEX REPLACE "^[ \t]*#[ \t]*include[ \t]*<([^>]*)>.*" "\\1" included "${line}")
    if(NOT included MATCHES "^(${allowed})$" OR included STREQUAL skim/skim.hpp)  # which is for users
      string(APPEND broken "${header} includes ${included}\n")
    endif()
  endforeach()
endforeach()

file(GLOB_RECURSE programs RELATIVE ${ROOT} ${ROOT}/examples/*.[ch]pp ${ROOT}/tests/package/*.[ch]pp)
foreach(program IN LISTS programs)
  file(STRINGS ${ROOT}/${program} lines REGEX "^[ \t]*#[ \t]*include.*skim/cpu/(kernel|simd)/")
  foreach(line IN LISTS lines)
    string(REGEX REPLACE ".*[<\"](.*)[>\"].*" "\\1" included "${line}")
    string(APPEND broken "${program} includes ${included}\n")
  endforeach()
endforeach()

if(broken OR NOT (headers OR programs))
  message(FATAL_ERROR "Against the tiers:\n${broken}")
endif()
