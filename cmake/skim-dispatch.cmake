# SPDX-License-Identifier: Apache-2.0
# Run-time choice of the instruction set. The build tree and the installed package both read this file.

# skim_add_dispatch(target LEVELS level...): gives `target` what cpu/dispatch.hpp declares, by one small unit for each
# level, which is a value of -march, from the least to the best; `-march` values may go on with +feature (x86-64-v4+avx512bf16).
# Units are compiled at -O2 in every configuration: without optimisation every small function stays one, and is shared.
function(skim_add_dispatch target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" LEVELS)
  if(NOT arg_LEVELS OR arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "skim_add_dispatch(target LEVELS level...): expected levels, for instance x86-64 x86-64-v3, "
                        "came '${ARGN}'")
  endif()
  set(declared "")
  set(listed "")
  foreach(level IN LISTS arg_LEVELS)
    string(MAKE_C_IDENTIFIER "level_${level}" name)
    string(REPLACE + ";" parts ${level})
    list(POP_FRONT parts march)
    list(TRANSFORM parts PREPEND -m)
    set(unit ${CMAKE_CURRENT_BINARY_DIR}/${target}_dispatch/${name}.cpp)
    file(CONFIGURE OUTPUT ${unit} @ONLY CONTENT [[
#include <skim/cpu/dispatch_level.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { namespace level_detail {
extern constexpr level_functions @name@ = all_functions("@level@");
}}}}  // namespace skim::v0_2::cpu::level_detail
]])
    add_library(${target}_${name} OBJECT ${unit})
    target_compile_options(${target}_${name} PRIVATE -O2 -march=${march} ${parts})
    set_target_properties(${target}_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
    target_link_libraries(${target}_${name} PRIVATE skim::skim)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_${name}>)
    list(APPEND declared ${name})
    list(APPEND listed "&${name}")
  endforeach()
  list(JOIN declared ", " declared)
  list(JOIN listed ", " listed)
  set(unit ${CMAKE_CURRENT_BINARY_DIR}/${target}_dispatch/levels.cpp)
  file(CONFIGURE OUTPUT ${unit} @ONLY CONTENT [[
#include <skim/cpu/dispatch.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { namespace level_detail {
extern const level_functions @declared@;
extern const level_functions* const dispatch_levels[] = {@listed@, nullptr};
}}}}  // namespace skim::v0_2::cpu::level_detail
]])
  target_sources(${target} PRIVATE ${unit})
  target_link_libraries(${target} PUBLIC skim::skim)
endfunction()
