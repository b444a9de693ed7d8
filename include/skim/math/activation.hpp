// SPDX-License-Identifier: Apache-2.0
/// \file The activations of an FFN, and their definitions in double.
#pragma once

#include <skim/config.hpp>

#include <cmath>

namespace skim { inline namespace v0_2 {

enum class activation : std::uint8_t {
  silu,          ///< x / (1 + exp(-x))
  gelu_tanh,     ///< x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
  gelu_erf,      ///< x (1 + erf(x / sqrt(2))) / 2
  relu,          ///< max(x, 0)
  relu_squared,  ///< max(x, 0)^2
};

SKIM_LOCAL constexpr const char* to_string(activation act) {
  switch (act) {
    case activation::silu:
      return "silu";
    case activation::gelu_tanh:
      return "gelu_tanh";
    case activation::gelu_erf:
      return "gelu_erf";
    case activation::relu:
      return "relu";
    case activation::relu_squared:
      return "relu_squared";
  }
  return "unknown";
}

/// The definition, NaN for NaN. Kernels differ from it by at most 4e-7 (|act(x)| + |x|).
inline double activate(activation act, double x) {
  switch (act) {
    case activation::silu:
      return x / (1 + std::exp(-x));
    case activation::gelu_tanh:
      return x / (1 + std::exp(-2 * 0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case activation::gelu_erf:
      return 0.5 * x * std::erfc(-0.7071067811865476 * x);
    case activation::relu:
      return x < 0 ? 0 : x;
    case activation::relu_squared:
      return x < 0 ? 0 : x * x;
  }
  return x;
}

}}  // namespace skim::v0_2
