# SPDX-License-Identifier: Apache-2.0
# Shared by tests, benchmarks and examples; not installed.

set(SKIM_TEST_ARCH native CACHE STRING "-march of tests, benchmarks and examples; empty for the compiler's default")
set(SKIM_TEST_STRIDE 1 CACHE STRING "Tests over a sample of cases take every n-th case, for slow builds")

set(skim_warnings -Wall -Wextra -Wshadow)

# Stops with the Debian package's name if one of our own programs lacks a library.
function(skim_require package target debian_package)
  skim_find(${package} ${target} ${debian_package} missing)
  if(missing)
    message(FATAL_ERROR "${missing}")
  endif()
endfunction()

# The flags of everything that we build and run ourselves.
function(skim_set_flags target)
  target_compile_options(${target} PRIVATE ${skim_warnings})
  if(SKIM_TEST_ARCH)
    target_compile_options(${target} PRIVATE -march=${SKIM_TEST_ARCH})
  endif()
endfunction()

# skim_add_program(name sources... [LIBRARIES targets...]): an executable on skim::tbb and skim::eigen, where there are
# such (a cross build has neither), with SKIM_HAS_TBB and SKIM_HAS_EIGEN set to 0 or 1.
function(skim_add_program name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" LIBRARIES)
  add_executable(${name} ${arg_UNPARSED_ARGUMENTS})
  skim_set_flags(${name})
  target_link_libraries(${name} PRIVATE skim::skim ${arg_LIBRARIES})
  foreach(component tbb eigen)
    string(TOUPPER SKIM_HAS_${component} macro)
    if(TARGET skim::${component})
      target_link_libraries(${name} PRIVATE skim::${component})
      target_compile_definitions(${name} PRIVATE ${macro}=1)
    else()
      target_compile_definitions(${name} PRIVATE ${macro}=0)
    endif()
  endforeach()
endfunction()

# The programs that `./tests/run` builds where it does not build everything.
foreach(label unit team plain property link)
  add_custom_target(${label}_tests)
endforeach()

# Reads GoogleTest and xsimd, which take half of a small test's compile time, from a precompiled header that the first
# test makes for all. Whether our own headers include what they use is seen by the tests that compile each alone.
function(skim_precompile name)
  get_property(maker GLOBAL PROPERTY skim_precompiled)
  if(maker)
    target_precompile_headers(${name} REUSE_FROM ${maker})
  else()
    target_precompile_headers(${name} PRIVATE <gtest/gtest.h> <skim/cpu/simd/compat.hpp>)
    set_property(GLOBAL PROPERTY skim_precompiled ${name})
  endif()
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    # GCC 12 forgets the pragmas of a precompiled header, which silence its own AVX-512 headers. Units without one, such
    # as those of tests/link and the examples, go without these flags.
    target_compile_options(${name} PRIVATE -Wno-uninitialized -Wno-maybe-uninitialized)
  endif()
endfunction()

# skim_add_test(name sources... [LIBRARIES targets...] LABEL label): a GoogleTest program, its sources compiled as one, each
# of its tests registered as <name>.<suite>.<test>. Those with `exhaustive` in their name get the label `exhaustive`
# instead, which no run includes unless asked.
function(skim_add_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "LABEL" "LIBRARIES")
  skim_add_program(${name} ${arg_UNPARSED_ARGUMENTS} LIBRARIES GTest::gtest_main ${arg_LIBRARIES})
  target_compile_definitions(${name} PRIVATE SKIM_TEST_STRIDE=${SKIM_TEST_STRIDE})
  set_target_properties(${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)
  skim_precompile(${name})
  set(options TEST_PREFIX ${name}. NO_PRETTY_VALUES DISCOVERY_TIMEOUT 60)
  gtest_discover_tests(${name} ${options} TEST_FILTER -*exhaustive* TEST_LIST ${name}_tests
                       PROPERTIES LABELS ${arg_LABEL})
  gtest_discover_tests(${name} ${options} TEST_FILTER *exhaustive* TEST_LIST ${name}_exhaustive
                       PROPERTIES LABELS exhaustive)
  if(TARGET ${arg_LABEL}_tests)
    add_dependencies(${arg_LABEL}_tests ${name})
  endif()
endfunction()
