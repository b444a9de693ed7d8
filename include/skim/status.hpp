// SPDX-License-Identifier: Apache-2.0
/// \file What `check` and `run` answer.
#pragma once

#include <skim/config.hpp>

#include <cstdio>
#include <cstdlib>
#include <initializer_list>

namespace skim { inline namespace v0_2 {

enum class status : std::uint8_t {
  ok,
  null_pointer,     ///< a pointer that the shape needs is null
  bad_extent,       ///< a size is negative, or differs from the one another argument implies
  bad_stride,       ///< the last stride is not 1, or an extent times its stride overflows 64 bits
  bad_type,         ///< an element type is missing, or differs from the one it must equal
  bad_group,        ///< the query heads are no multiple of the KV heads
  bad_value,        ///< a number lies outside its range, e.g. a budget of 0
  bad_index,        ///< `check_indices`: a table or list points outside, descends, or is too long
  short_workspace,  ///< `run`: the workspace is smaller than `workspace_bytes`, or not 64-byte aligned
  short_state,      ///< `run`: the state is smaller than `state_bytes`
  unsupported,      ///< valid, but beyond this kernel's limits
};

/// Which way a call went. A sparse policy answers `dense` where it had nothing to leave out.
enum class path : std::uint8_t { none, dense, sparse };

SKIM_LOCAL constexpr const char* to_string(status code) {
  switch (code) {
    case status::ok:
      return "ok";
    case status::null_pointer:
      return "null pointer";
    case status::bad_extent:
      return "bad extent";
    case status::bad_stride:
      return "bad stride";
    case status::bad_type:
      return "bad element type";
    case status::bad_group:
      return "query heads are no multiple of KV heads";
    case status::bad_value:
      return "value out of range";
    case status::bad_index:
      return "index out of range";
    case status::short_workspace:
      return "workspace too small or not 64-byte aligned";
    case status::short_state:
      return "state too small";
    case status::unsupported:
      return "unsupported";
  }
  return "unknown status";
}

/// A value as it was passed: a whole number, a real one, or the name of an enumerator.
struct quantity {
  enum class kind : std::uint8_t { none, whole, real, name };

  kind is = kind::none;
  union {
    std::int64_t whole = 0;
    double real;
    const char* name;
  };

  constexpr quantity() = default;
  SKIM_HD constexpr quantity(std::int64_t value) : is(kind::whole), whole(value) {}  // NOLINT: implicit, as all four
  SKIM_HD constexpr quantity(int value) : is(kind::whole), whole(value) {}           // NOLINT
  SKIM_HD constexpr quantity(double value) : is(kind::real), real(value) {}          // NOLINT
  SKIM_HD constexpr quantity(const char* value) : is(kind::name), name(value) {}     // NOLINT
};

namespace detail {

/// In as few digits as tell it from every other double; from every other float if it is one.
SKIM_LOCAL void describe_real(double value, char* text, std::size_t bytes) {
  const bool is_float =
      value >= -0x1.fffffep127 && value <= 0x1.fffffep127 && static_cast<double>(static_cast<float>(value)) == value;
  for (const int digits : {6, 9, 17}) {
    const int length = std::snprintf(text, bytes, "%.*g", digits, value);
    if (length < 0 || static_cast<std::size_t>(length) >= bytes) return;
    if (is_float ? std::strtof(text, nullptr) == static_cast<float>(value) : std::strtod(text, nullptr) == value)
      return;
  }
}

}  // namespace detail

/// Writes the value into `text` (at most `bytes`, always terminated) and returns `text`. A NaN reads "nan".
SKIM_LOCAL const char* describe(quantity value, char* text, std::size_t bytes) {
  switch (value.is) {
    case quantity::kind::none:
      std::snprintf(text, bytes, "nothing");
      break;
    case quantity::kind::whole:
      std::snprintf(text, bytes, "%lld", static_cast<long long>(value.whole));
      break;
    case quantity::kind::real:
      if (value.real != value.real) {
        std::snprintf(text, bytes, "nan");
      } else {
        detail::describe_real(value.real, text, bytes);
      }
      break;
    case quantity::kind::name:
      std::snprintf(text, bytes, "%s", value.name);
      break;
  }
  return text;
}

/// Which part of a view is at fault.
enum class part : std::uint8_t { whole, extents, strides, data, type };

/// The answer of `check`, `check_indices` and `run`. On anything but `ok` nothing was written.
struct [[nodiscard]] report {
  status code = status::ok;
  path taken = path::none;    ///< `run` only
  const char* argument = "";  ///< the argument at fault, e.g. "mask.left"; of a view its name, e.g. "q", and then
  quantity got;               ///< its value, as it was passed
  quantity expected;          ///< the value, or the bound, that it should have had
  const char* relation = "";  ///< how `expected` is meant: "", "at least", "at most", "a multiple of"
  part of = part::whole;      ///< the part of the view, and
  int axis = 0;               ///< of extents and strides, which

  SKIM_HD constexpr bool ok() const { return code == status::ok; }
  SKIM_HD constexpr explicit operator bool() const { return ok(); }
};

/// Writes the argument's full name, such as "q.extents[1]", into `text` (at most `bytes`, always terminated).
SKIM_LOCAL const char* argument_name(const report& answer, char* text, std::size_t bytes) {
  switch (answer.of) {
    case part::whole:
      std::snprintf(text, bytes, "%s", answer.argument);
      break;
    case part::extents:
      std::snprintf(text, bytes, "%s.extents[%d]", answer.argument, answer.axis);
      break;
    case part::strides:
      std::snprintf(text, bytes, "%s.strides[%d]", answer.argument, answer.axis);
      break;
    case part::data:
      std::snprintf(text, bytes, "%s.data", answer.argument);
      break;
    case part::type:
      std::snprintf(text, bytes, "%s.type", answer.argument);
      break;
  }
  return text;
}

/// Writes one line such as "bad extent: q.extents[1] is 7, expected a multiple of 2" into `text` (at most `bytes`,
/// always terminated) and returns `text`.
SKIM_LOCAL const char* describe(const report& answer, char* text, std::size_t bytes) {
  if (bytes == 0) return text;
  if (answer.ok()) {
    std::snprintf(text, bytes, "ok");
    return text;
  }
  char name[96], got[64], expected[64];
  argument_name(answer, name, sizeof name);
  if (answer.code == status::null_pointer) {
    std::snprintf(text, bytes, "%s: %s is null", to_string(answer.code), name);
    return text;
  }
  const int length = std::snprintf(
      text, bytes, "%s: %s is %s, expected %s%s%s", to_string(answer.code), name, describe(answer.got, got, sizeof got),
      answer.relation, answer.relation[0] == '\0' ? "" : " ", describe(answer.expected, expected, sizeof expected));
  if (length < 0) text[0] = '\0';  // looked at: compilers warn of a text that may be cut unseen
  return text;
}

/// A report of something wrong, for policies of one's own too: `fault(status::bad_value, "n", n, 1, "at least")`.
SKIM_HD SKIM_INLINE constexpr report fault(status code, const char* argument, quantity got, quantity expected,
                                           const char* relation = "") {
  return report{code, path::none, argument, got, expected, relation, part::whole, 0};
}

SKIM_HD SKIM_INLINE constexpr report null_fault(const char* argument) {
  return fault(status::null_pointer, argument, quantity(), quantity());
}

/// Floating-point operations and bytes of memory traffic that a call needs; benchmarks divide them by time.
struct cost_estimate {
  double flops = 0;
  double bytes = 0;

  SKIM_HD SKIM_INLINE constexpr cost_estimate operator+(cost_estimate other) const {
    return {flops + other.flops, bytes + other.bytes};
  }
};

}}  // namespace skim::v0_2
