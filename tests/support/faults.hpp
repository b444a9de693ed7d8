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
  std::string argument;
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
  EXPECT_EQ(got.argument, expected.argument);
  EXPECT_EQ(got.taken, skim::path::none);
  char text[200];
  const std::string line = describe(got, text, sizeof text);
  EXPECT_NE(line.find(got.argument), std::string::npos) << line;
  if (got.code != skim::status::null_pointer) {
    EXPECT_NE(line.find(std::to_string(got.got)), std::string::npos) << line;
  }
}

}  // namespace skim_test
