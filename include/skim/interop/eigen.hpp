// SPDX-License-Identifier: Apache-2.0
/// \file Eigen's matrices as views, without a copy: `as_view` and `as_heads`.
#pragma once

#include <skim/view.hpp>

SKIM_INTRINSICS_BEGIN
#include <Eigen/Core>
SKIM_INTRINSICS_END

#include <type_traits>
#include <utility>

namespace skim { inline namespace v0_2 {

namespace detail {

/// The element type that stands for one of Eigen's; other scalars stand for themselves.
template <class Scalar>
struct eigen_element {
  using type = Scalar;
};
template <>
struct eigen_element<Eigen::half> {
  using type = f16;
};
template <>
struct eigen_element<Eigen::bfloat16> {
  using type = bf16;
};
static_assert(sizeof(Eigen::half) == sizeof(f16) && alignof(Eigen::half) == alignof(f16), "the bits are shared");
static_assert(sizeof(Eigen::bfloat16) == sizeof(bf16) && alignof(Eigen::bfloat16) == alignof(bf16),
              "the bits are shared");

template <class X>
inline constexpr bool eigen_has_memory = (static_cast<int>(X::Flags) & static_cast<int>(Eigen::DirectAccessBit)) != 0;

/// Whether an expression holds elements of its own: a matrix or array, or a class made from one; a `Ref` to const, which
/// copies what does not fit it.
template <class X>
std::true_type eigen_owns(const Eigen::PlainObjectBase<X>*);
template <class X, int Options, class Stride>
std::true_type eigen_owns(const Eigen::Ref<const X, Options, Stride>*);
std::false_type eigen_owns(const void*);

/// A temporary that owns its elements; a temporary map, block or transpose does not.
template <class X>
inline constexpr bool eigen_dies_with_call =
    !std::is_lvalue_reference_v<X> && decltype(eigen_owns(std::declval<std::remove_reference_t<X>*>()))::value;

}  // namespace detail

/// Views `x [rows, cols]` where it lies: a matrix or array, a map, `Ref`, block, row or transpose. Constant if `x` cannot
/// be written to. Expressions without memory of their own, such as `a + b`, do not compile; evaluate them first. Nor do
/// temporaries that own their elements, a `Ref` to const among them, which copies what does not fit it; name them. A
/// block or transpose of a temporary is as good as the temporary: no type tells it from one of a named matrix.
///
/// The view's last stride is that of the columns, and operations refuse any but 1: matrices are row-major here, and the
/// transpose of a column-major matrix is too.
template <class X>
auto as_view(X&& x) {
  using matrix = std::remove_cv_t<std::remove_reference_t<X>>;
  static_assert(detail::eigen_has_memory<matrix>,
                "skim::as_view: this Eigen expression has no memory to view; assign it to a matrix first");
  static_assert(!detail::eigen_dies_with_call<X>,
                "skim::as_view: this Eigen matrix is a temporary, the view would outlive it; give it a name");
  if constexpr (detail::eigen_has_memory<matrix>) {
    using stored = std::remove_pointer_t<decltype(x.data())>;
    using plain = typename detail::eigen_element<std::remove_const_t<stored>>::type;
    using value = std::conditional_t<std::is_const_v<stored>, const plain, plain>;
    return tensor_view<value, 2>(reinterpret_cast<value*>(x.data()), {x.rows(), x.cols()},
                                 {x.rowStride(), x.colStride()});
  }
}

/// Views `x [tokens, heads * dim]`, what a projection gives, as `[tokens, heads, dim]`. Where `heads` does not divide the
/// columns, `dim` is -1, which every `check` refuses.
template <class X>
auto as_heads(X&& x, std::int64_t heads) {
  const auto flat = as_view(std::forward<X>(x));
  const std::int64_t width = flat.extents[1], step = flat.strides[1];
  const std::int64_t dim = heads > 0 && width % heads == 0 ? width / heads : -1;
  return tensor_view<std::remove_pointer_t<decltype(flat.data)>, 3>(flat.data, {flat.extents[0], heads, dim},
                                                                    {flat.strides[0], dim * step, step});
}

}}  // namespace skim::v0_2
