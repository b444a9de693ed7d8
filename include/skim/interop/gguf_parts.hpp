// SPDX-License-Identifier: Apache-2.0
/// \file What a GGUF file is made of, for `gguf.hpp`, which reads it: types of numbers, tensors, values.
#pragma once

#include <skim/view.hpp>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <variant>
#include <vector>

namespace skim { inline namespace v0_2 { namespace gguf {

/// How a type stores its numbers: in blocks, one after another in a row.
struct format {
  std::uint32_t id = 0;  ///< ggml's
  const char* name = "";
  std::int64_t block_values = 0, block_bytes = 0;
  element type = element::none;  ///< what skim can compute with
};

/// ggml's types, those that it has given up left out.
inline constexpr format formats[] = {{0, "F32", 1, 4, element::f32},
                                     {1, "F16", 1, 2, element::f16},
                                     {2, "Q4_0", 32, 18},
                                     {3, "Q4_1", 32, 20},
                                     {6, "Q5_0", 32, 22},
                                     {7, "Q5_1", 32, 24},
                                     {8, "Q8_0", 32, 34},
                                     {10, "Q2_K", 256, 84},
                                     {11, "Q3_K", 256, 110},
                                     {12, "Q4_K", 256, 144},
                                     {13, "Q5_K", 256, 176},
                                     {14, "Q6_K", 256, 210},
                                     {24, "I8", 1, 1},
                                     {25, "I16", 1, 2},
                                     {26, "I32", 1, 4},
                                     {27, "I64", 1, 8},
                                     {28, "F64", 1, 8},
                                     {30, "BF16", 1, 2, element::bf16}};

/// One tensor: contiguous, last extent fastest, as everywhere in skim; ggml lists them the other way round.
struct tensor {
  std::string_view name;
  const gguf::format* format = nullptr;  ///< null: a type that is not known here
  std::uint32_t type = 0;                ///< ggml's number of it
  std::vector<std::int64_t> shape;       ///< at least one extent, at most four
  const void* data = nullptr;
  std::size_t bytes = 0;

  /// The tensor as a view; empty unless it has this rank, elements that skim can compute with, and aligned data (which the
  /// format sees to where the file's bytes are).
  template <int Rank>
  std::optional<tensor_view<const void, Rank>> view() const {
    if (shape.size() != static_cast<std::size_t>(Rank) || !format || format->type == element::none) return std::nullopt;
    if (reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(format->block_bytes) != 0)
      return std::nullopt;
    std::int64_t extents[tensor_view<const void, Rank>::axes];
    std::copy(shape.begin(), shape.end(), extents);
    return tensor_view<const void, Rank>(data, extents, format->type);
  }
};

/// A list in the file.
struct array {
  std::uint32_t type = 0;  ///< of its elements: 0 to 12 as the format counts them, none of them lists
  std::uint64_t count = 0;
  std::string_view bytes;  ///< of all elements
};

using value = std::variant<std::uint64_t, std::int64_t, double, bool, std::string_view, array>;

inline constexpr std::uint32_t text_type = 8, array_type = 9;

namespace detail {

/// Bytes of a value that is a number, by type; 0: text, a list, or no type.
inline constexpr std::size_t number_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

template <class Number>
Number load(const char* at) {
  Number number;
  std::memcpy(&number, at, sizeof number);
  return number;
}

template <class Stored, class Kind>
value number_as(const char* at) {
  return static_cast<Kind>(load<Stored>(at));
}
inline value flag_at(const char* at) {
  return *at != 0;
}

/// A value of one of the types with `number_bytes`.
inline value number_at(std::uint32_t type, const char* at) {
  using u = std::uint64_t;
  using i = std::int64_t;
  constexpr value (*readers[])(const char*) = {number_as<std::uint8_t, u>,
                                               number_as<std::int8_t, i>,
                                               number_as<std::uint16_t, u>,
                                               number_as<std::int16_t, i>,
                                               number_as<std::uint32_t, u>,
                                               number_as<std::int32_t, i>,
                                               number_as<float, double>,
                                               flag_at,
                                               nullptr,
                                               nullptr,
                                               number_as<u, u>,
                                               number_as<i, i>,
                                               number_as<double, double>};
  return readers[type](at);
}

}  // namespace detail

}}}  // namespace skim::v0_2::gguf
