// SPDX-License-Identifier: Apache-2.0
/// \file How the three kinds of policies are asked which members they have.
#pragma once

#include <skim/cpu/simd/compat.hpp>

#include <type_traits>

namespace skim {
inline namespace v0 {
namespace cpu {
inline namespace SKIM_CPU_FEATURES {
namespace detail {

/// True if `Member<P>`, the type of an expression that uses the member, exists.
template <template <class> class Member, class P, class = void>
struct has_member : std::false_type {};
template <template <class> class Member, class P>
struct has_member<Member, P, std::void_t<Member<P>>> : std::true_type {};

}  // namespace detail
}  // namespace SKIM_CPU_FEATURES
}  // namespace cpu
}  // namespace v0
}  // namespace skim
