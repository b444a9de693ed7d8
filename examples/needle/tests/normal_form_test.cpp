// SPDX-License-Identifier: Apache-2.0
#include "../normal_form.hpp"

#include <gtest/gtest.h>

namespace {

using needle::normal_form;

TEST(normal_form, joins_and_orders_marks) {
  const struct {
    const char *given, *expected;
  } cases[] = {
      {"", ""},
      {"plain", "plain"},
      {u8"caf\u00e9", u8"caf\u00e9"},
      {u8"cafe\u0301", u8"caf\u00e9"},
      {u8"a\u0308\u0301", u8"\u00e4\u0301"},
      {u8"a\u0301\u0323", u8"\u1ea1\u0301"},   // what stands below the letter comes first
      {u8"q\u0307\u0323", u8"q\u0323\u0307"},  // and is put there where nothing can be joined
      {u8"e\u0327\u0301\u0300", u8"\u0229\u0301\u0300"},
      {u8"\u212b\u2126", u8"\u00c5\u03a9"},  // units that are letters
      {u8"\u1e9b\u0323", u8"\u1e9b\u0323"},
      {u8"\u0344", u8"\u0308\u0301"},  // is not joined again
      {u8"\u0915\u093c \u0958", u8"\u0915\u093c \u0915\u093c"},
      {u8"\u0bc6\u0bbe", u8"\u0bca"},
      {u8"\u1112\u1161\u11ab", u8"\ud55c"},
      {u8"\uac00\u11a8\u11a8", u8"\uac01\u11a8"},
      {u8"\uf900", u8"\u8c48"},
      {u8"\u0301a", u8"\u0301a"},
      {u8"\u0308\u0301", u8"\u0308\u0301"},
      {u8"\U0001d15e", u8"\U0001d157\U0001d165"},
  };
  for (const auto& each : cases) {
    EXPECT_EQ(normal_form(each.given), each.expected);
    EXPECT_EQ(normal_form(each.expected), each.expected);
  }
}

TEST(normal_form, other_bytes_stay) {
  const std::string last = "\xf4\x8f\xbf\xbf";
  for (const std::string& bytes :
       {std::string("\xff\xfe\xcc"), std::string("\xed\xa0\x80"), std::string("\xc0\x80\xe0\x80\x80"),
        std::string("\xf4\x90\x80\x80"), last, "a" + last + "\xe2\x96"}) {
    EXPECT_EQ(normal_form(bytes), bytes);
    EXPECT_EQ(normal_form("e\xcc\x81" + bytes + "e\xcc\x81"), "\xc3\xa9" + bytes + "\xc3\xa9");
  }
}

}  // namespace
