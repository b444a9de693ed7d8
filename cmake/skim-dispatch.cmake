# SPDX-License-Identifier: Apache-2.0
# Run-time choice of the instruction set. The build tree and the installed package both read this file.

# skim_add_dispatch(target LEVELS level...): gives `target` what cpu/dispatch.hpp declares, by one small unit for each
# level, from the least to the best: x86-64, x86-64-v2, -v3, -v4, x86-64-v4+avx512bf16 and +avx512vnni; elsewhere what
# -march takes and every processor has that the program runs on. Programs and shared libraries have levels of their own; what
# is linked into one of them, such as a static library, shares its.
# Units are compiled at -O2 in every configuration: without optimisation every small function stays one, and is shared.
function(skim_add_dispatch target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" LEVELS)
  if(NOT arg_LEVELS OR arg_UNPARSED_ARGUMENTS OR "" IN_LIST arg_LEVELS)
    message(FATAL_ERROR "skim_add_dispatch(target LEVELS level...): expected levels, for instance x86-64 x86-64-v3, "
                        "came '${ARGN}'")
  endif()
  set(type none)
  if(TARGET "${target}")
    get_target_property(type ${target} TYPE)
    get_target_property(before ${target} SKIM_LEVELS)
    get_target_property(alias ${target} ALIASED_TARGET)
  endif()
  if(NOT type MATCHES "^(EXECUTABLE|STATIC_LIBRARY|SHARED_LIBRARY|MODULE_LIBRARY)$" OR alias)
    message(FATAL_ERROR "skim_add_dispatch(${target} ...): expected a program or a static, shared or module library")
  elseif(before)
    message(FATAL_ERROR "skim_add_dispatch(${target} ...): it has levels already, ${before}; give all in one call")
  endif()
  set_target_properties(${target} PROPERTIES SKIM_LEVELS "${arg_LEVELS}")
  set(declared "")
  set(listed "")
  foreach(level IN LISTS arg_LEVELS)
    string(MAKE_C_IDENTIFIER "level_${level}" name)
    string(REPLACE + ";" parts "${level}")
    list(POP_FRONT parts march)
    list(TRANSFORM parts PREPEND -m)
    set(unit ${CMAKE_CURRENT_BINARY_DIR}/${target}_dispatch/${name}.cpp)
    file(CONFIGURE OUTPUT ${unit} @ONLY CONTENT [[
#include <skim/cpu/dispatch_level.hpp>

namespace skim { inline namespace v0_2 { namespace cpu { namespace level_detail {
static_assert(is_known_level, "skim_add_dispatch: @level@ has features that are not asked for at run time");
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
