// SPDX-License-Identifier: Apache-2.0
/// \file One thing wrong with a good call, and the report that must name it.
#pragma once

#include <skim/status.hpp>

#include <gtest/gtest.h>

#include <functional>
#include <ostream>
#include <string>

namespace skim_test {

inline constexpr std::int64_t huge = std::int64_t{1} << 62;

struct expectation {
  skim::status code;
  std::string argument;  ///< its full name
  std::string got;       ///< as `describe` prints it; empty: not compared
};

/// One thing wrong with a good call.
template <class Args>
struct fault {
  const char* name;
  std::function<void(Args&)> make;
  expectation expected;
};

template <class Args>
std::ostream& operator<<(std::ostream& to, const fault<Args>& f) {
  return to << f.name;
}

inline void expect_report(const skim::report& got, const expectation& expected) {
  EXPECT_EQ(to_string(got.code), std::string(to_string(expected.code)));
  char name[96], value[64], line[300];
  EXPECT_EQ(argument_name(got, name, sizeof name), expected.argument);
  EXPECT_EQ(got.taken, skim::path::none);
  describe(got, line, sizeof line);
  EXPECT_NE(std::string(line).find(name), std::string::npos) << line;
  if (got.code == skim::status::null_pointer) return;
  describe(got.got, value, sizeof value);
  EXPECT_NE(std::string(line).find(value), std::string::npos) << line;
  if (!expected.got.empty()) {
    EXPECT_EQ(value, expected.got) << line;
  }
}

}  // namespace skim_test
