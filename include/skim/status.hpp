// SPDX-License-Identifier: Apache-2.0
/// \file What `check` and `run` answer.
#pragma once

#include <skim/config.hpp>

#include <cstdio>

namespace skim {
inline namespace v0 {

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

inline constexpr const char* to_string(status code) {
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

/// The answer of `check`, `check_indices` and `run`. On anything but `ok` nothing was written.
struct [[nodiscard]] report {
  status code = status::ok;
  path taken = path::none;    ///< `run` only
  const char* argument = "";  ///< the argument at fault, e.g. "q.extents[1]"
  std::int64_t got = 0;       ///< its value
  std::int64_t expected = 0;  ///< the value, or the bound, that it should have had
  const char* relation = "";  ///< how `expected` is meant: "", "at least", "at most", "a multiple of"

  SKIM_HD constexpr bool ok() const { return code == status::ok; }
  SKIM_HD constexpr explicit operator bool() const { return ok(); }
};

/// Writes one line such as "bad extent: q.extents[1] is 7, expected a multiple of 2" into `text` (at most `bytes`,
/// always terminated) and returns `text`.
inline const char* describe(const report& answer, char* text, std::size_t bytes) {
  if (bytes == 0) return text;
  if (answer.ok()) {
    std::snprintf(text, bytes, "ok");
  } else if (answer.code == status::null_pointer) {
    std::snprintf(text, bytes, "%s: %s is null", to_string(answer.code), answer.argument);
  } else {
    std::snprintf(text, bytes, "%s: %s is %lld, expected %s%s%lld", to_string(answer.code), answer.argument,
                  static_cast<long long>(answer.got), answer.relation, answer.relation[0] == '\0' ? "" : " ",
                  static_cast<long long>(answer.expected));
  }
  return text;
}

namespace detail {

SKIM_HD constexpr report fault(status code, const char* argument, std::int64_t got, std::int64_t expected,
                               const char* relation = "") {
  return report{code, path::none, argument, got, expected, relation};
}

SKIM_HD constexpr report null_fault(const char* argument) {
  return fault(status::null_pointer, argument, 0, 0);
}

}  // namespace detail

/// Floating-point operations and bytes of memory traffic that a call needs at least; benchmarks divide them by time.
struct cost_estimate {
  double flops = 0;
  double bytes = 0;

  SKIM_HD constexpr cost_estimate operator+(cost_estimate other) const {
    return {flops + other.flops, bytes + other.bytes};
  }
};

}  // namespace v0
}  // namespace skim
