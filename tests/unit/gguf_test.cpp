// SPDX-License-Identifier: Apache-2.0
#include "support/gguf_builder.hpp"
#include "support/gguf_invariants.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <random>

namespace {

using skim::gguf::file;
using skim::gguf::tensor;
using builder = skim_test::gguf_builder;

const std::string golden = std::string(SKIM_GOLDENS) + "/blocks.gguf";

std::string bytes_of(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

builder small() {
  builder made;
  made.head(2, 2).number("general.alignment", 64).text("name").add(std::uint32_t{8}).text("small");
  return made.tensor("weight", {3, 2}, 0, 64).tensor("bias", {5}, 30, 0).data(64 + 24, 64);
}

TEST(gguf, reads_what_another_program_wrote) {
  const file given = file::read(golden);
  ASSERT_TRUE(given.ok()) << given.error();
  ASSERT_EQ(given.tensors().size(), 22u);
  for (const tensor& each : given.tensors()) {
    if (each.name.find('.') != std::string_view::npos) continue;
    const tensor* const numbers = given.find(std::string(each.name) + ".numbers");
    ASSERT_TRUE(numbers && skim::gguf::can_widen(each)) << each.name;
    EXPECT_EQ(each.format->name, each.name);
    ASSERT_EQ(each.shape, (std::vector<std::int64_t>{2, 512})) << each.name;
    const float* const expected = static_cast<const float*>(numbers->data);
    std::vector<float> both(1024), second(512);
    skim::gguf::widen_rows(each, 0, 2, both.data());
    skim::gguf::widen_rows(each, 1, 1, second.data());
    for (std::size_t i = 0; i < both.size(); ++i) {
      // A product of three factors and a difference, each rounded once; the largest of a row is below 200.
      ASSERT_NEAR(both[i], expected[i], 200 * 4 * 0x1p-24) << each.name << ' ' << i;
    }
    EXPECT_EQ(second, std::vector<float>(both.begin() + 512, both.end())) << each.name;
  }
}

TEST(gguf, views_what_skim_computes_with) {
  const file given = file::read(golden);
  for (const auto& [name, type] : {std::pair("F32", skim::element::f32), std::pair("F16", skim::element::f16),
                                   std::pair("BF16", skim::element::bf16)}) {
    const auto view = given.find(name)->view<2>();
    ASSERT_TRUE(view) << name;
    EXPECT_EQ(view->type, type);
    EXPECT_EQ(view->extents[0], 2);
    EXPECT_EQ(view->extents[1], 512);
    EXPECT_FALSE(given.find(name)->view<1>()) << "another rank";
  }
  EXPECT_FALSE(given.find("Q8_0")->view<2>());
  EXPECT_EQ(given.find("absent"), nullptr);
}

TEST(gguf, reads_values_of_every_kind) {
  file moved = file::read(golden);
  const file given = std::move(moved);
  EXPECT_EQ(given.integer("test.u8"), 200);
  EXPECT_EQ(given.integer("test.i8"), -100);
  EXPECT_EQ(given.integer("test.u16"), 60000);
  EXPECT_EQ(given.integer("test.i16"), -30000);
  EXPECT_EQ(given.integer("test.u32"), 4000000000);
  EXPECT_EQ(given.integer("test.i32"), -2000000000);
  EXPECT_EQ(given.integer("test.i64"), -(std::int64_t{1} << 40));
  EXPECT_EQ(given.integer("test.u64"), std::nullopt) << "does not fit";
  EXPECT_EQ(given.number("test.u64"), 0x1p63);
  EXPECT_EQ(given.number("test.f32"), 0.5);
  EXPECT_EQ(given.number("test.f64"), 0.1);
  EXPECT_EQ(given.number("test.i8"), -100.0);
  EXPECT_EQ(given.boolean("test.yes"), true);
  EXPECT_EQ(given.text("test.text"), "caf\xc3\xa9");
  EXPECT_EQ(given.text("general.architecture"), "test");
  EXPECT_EQ(given.texts("test.texts"), (std::vector<std::string_view>{"a", "", "b c"}));
  EXPECT_EQ(given.numbers("test.numbers"), (std::vector<double>{1, -2, 3}));
  EXPECT_EQ(given.numbers("test.halves"), (std::vector<double>{0.5, 1.5}));
  EXPECT_EQ(given.numbers("test.flags"), (std::vector<double>{1, 0}));
  EXPECT_EQ(given.integer("test.f32"), std::nullopt);
  EXPECT_EQ(given.text("test.u8"), std::nullopt);
  EXPECT_EQ(given.texts("test.numbers"), std::nullopt);
  EXPECT_EQ(given.numbers("test.texts"), std::nullopt);
  EXPECT_EQ(given.boolean("absent"), std::nullopt);
}

TEST(gguf, reads_from_memory) {
  const builder made = small();
  const file given = made.view();
  ASSERT_TRUE(given.ok()) << given.error();
  ASSERT_EQ(given.tensors().size(), 2u);
  EXPECT_EQ(given.tensors()[0].name, "bias");
  const tensor* const weight = given.find("weight");
  ASSERT_TRUE(weight);
  EXPECT_EQ(weight->shape, (std::vector<std::int64_t>{2, 3})) << "last extent fastest";
  EXPECT_EQ(weight->bytes, 24u);
  EXPECT_EQ(static_cast<const char*>(weight->data)[5], 64 + 5);
  EXPECT_EQ(given.text("name"), "small");
}

TEST(gguf, at_any_address) {
  const std::string bytes = bytes_of(golden);
  for (std::size_t shift = 0; shift < 4; ++shift) {
    std::vector<char> moved(bytes.size() + shift);
    std::copy(bytes.begin(), bytes.end(), moved.begin() + static_cast<std::ptrdiff_t>(shift));
    EXPECT_EQ(skim_test::broken_gguf_invariant(moved.data() + shift, bytes.size()), "");
  }
}

TEST(gguf, types_that_are_not_known_are_listed) {
  builder made;
  const file given = made.head(2, 0).tensor("odd", {256}, 16, 0).tensor("plain", {2}, 0, 96).data(104).view();
  ASSERT_TRUE(given.ok()) << given.error();
  EXPECT_EQ(given.find("odd")->format, nullptr);
  EXPECT_EQ(given.find("odd")->type, 16u);
  EXPECT_EQ(given.find("odd")->bytes, 0u);
  EXPECT_FALSE(skim::gguf::can_widen(*given.find("odd")));
  EXPECT_FALSE(given.find("odd")->view<1>());
  EXPECT_TRUE(given.find("plain")->view<1>());
}

TEST(gguf, what_is_known_and_not_widened_says_so) {
  builder made;
  const file given = made.head(2, 0).tensor("k", {256}, 10, 0).tensor("i", {4}, 26, 96).data(112).view();
  ASSERT_TRUE(given.ok()) << given.error();
  for (const tensor& each : given.tensors()) {
    EXPECT_TRUE(each.format) << each.name;
    EXPECT_FALSE(skim::gguf::can_widen(each)) << each.name;
    EXPECT_FALSE(each.view<1>()) << each.name;
  }
}

TEST(gguf, a_file_without_anything) {
  EXPECT_TRUE(builder().head(0, 0).view().ok());
  EXPECT_TRUE(builder().head(0, 0, 2).view().ok()) << "version 2";
  EXPECT_TRUE(builder().head(1, 0).tensor("nothing", {0, 7}, 0, 0).view().ok());
}

void expect_refused(const builder& made, const std::string& complaint) {
  const file given = made.view();
  EXPECT_FALSE(given.ok()) << complaint;
  EXPECT_NE(given.error().find(complaint), std::string::npos) << given.error();
  EXPECT_TRUE(given.tensors().empty() && given.values().empty()) << complaint;
}

TEST(gguf, names_what_is_wrong) {
  const std::uint32_t u32 = 4, text = 8, list = 9;
  constexpr std::uint64_t huge = std::uint64_t{1} << 63;
  expect_refused(builder(), "does not begin with 'GGUF'");
  expect_refused(builder().head(0, 0, 1), "version 1, expected 2 or 3");
  expect_refused(builder().head(0, 0, 0x03000000), "version 50331648");
  expect_refused(builder().head(huge, 0), "tensors and 0 values, more than");
  expect_refused(builder().head(0, huge), "more than the file has room for");
  expect_refused(builder().head(0, 1).text("a").add(std::uint32_t{13}).add(huge), "'a' has type 13");
  expect_refused(builder().head(0, 1).add(huge).add(huge), "ends in the middle");
  expect_refused(builder().head(0, 1).text("a").add(text).add(huge), "ends in the middle");
  expect_refused(builder().head(0, 1).text("a").add(list).add(u32).add(huge), "ends in the middle");
  expect_refused(builder().head(0, 1).text("a").add(list).add(text).add(huge), "ends in the middle");
  expect_refused(builder().head(0, 1).text("a").add(list).add(list).add(huge), "'a' is a list of type 9");
  expect_refused(builder().head(0, 1).text("a").add(list).add(std::uint32_t{99}).add(huge), "a list of type 99");
  expect_refused(builder().head(0, 2).number("a", 1).number("a", 1), "two values are named 'a'");
  expect_refused(builder().head(0, 1).number("general.alignment", 0), "general.alignment is no power of two");
  expect_refused(builder().head(0, 1).number("general.alignment", 24), "general.alignment is no power of two");
  expect_refused(builder().head(0, 1).text("general.alignment").add(text).text("32"), "general.alignment is no");
  expect_refused(builder().head(1, 0).tensor("a", {}, 0, 0).data(64), "'a' has 0 extents");
  expect_refused(builder().head(1, 0).tensor("a", {1, 1, 1, 1, 1}, 0, 0).data(64), "'a' has 5 extents");
  expect_refused(builder().head(1, 0).tensor("a", {huge}, 0, 0).data(64), "'a' is larger than memory");
  expect_refused(builder().head(1, 0).tensor("a", {huge >> 31, huge >> 31}, 0, 0).data(64),
                 "'a' is larger than memory");
  expect_refused(builder().head(1, 0).tensor("a", {huge >> 1}, 28, 0).data(64), "'a' is larger than memory");
  expect_refused(builder().head(1, 0).tensor("a", {33}, 8, 0).data(64), "rows of 33 values, expected a multiple of 32");
  expect_refused(builder().head(1, 0).tensor("a", {17}, 0, 0).data(64), "'a' lies outside the file");
  expect_refused(builder().head(1, 0).tensor("a", {1}, 0, 64).data(64), "'a' lies outside the file");
  expect_refused(builder().head(1, 0).tensor("a", {1}, 0, huge).data(64), "'a' lies outside the file");
  expect_refused(builder().head(1, 0).tensor("a", {1}, 0, 4).data(64), "'a' is not aligned to 32 bytes");
  expect_refused(builder().head(2, 0).tensor("a", {9}, 0, 0).tensor("b", {1}, 0, 32).data(64), "'b' overlaps another");
  expect_refused(builder().head(2, 0).tensor("a", {1}, 0, 0).tensor("a", {1}, 0, 32).data(64),
                 "two tensors are named 'a'");
  expect_refused(builder().head(0, 1).text("a\n\x1b").add(std::uint32_t{99}).add(huge), "value 'a?\x3f' has type 99");
}

TEST(gguf, refuses_what_cannot_be_read) {
  EXPECT_EQ(file::read("/nonexistent/model.gguf").error(), "no such file");
  EXPECT_EQ(file::read(testing::TempDir()).error(), "no such file") << "a directory";
  EXPECT_EQ(file::read("/dev/zero").error(), "no such file") << "a file without an end";
  const std::filesystem::path empty = std::filesystem::path(testing::TempDir()) / "skim_empty.gguf";
  std::ofstream(empty).flush();
  EXPECT_NE(file::read(empty).error().find("does not begin with"), std::string::npos);
  std::filesystem::remove(empty);
}

TEST(gguf, every_truncation_is_refused) {
  const std::string bytes = small().bytes;
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const std::vector<char> cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_FALSE(file::view(cut.data(), cut.size()).ok()) << size;
    EXPECT_EQ(skim_test::broken_gguf_invariant(cut.data(), cut.size()), "") << size;
  }
}

/// Random edits, numbers exchanged for hostile ones among them.
TEST(gguf, no_edit_makes_it_read_outside) {
  const std::string whole = bytes_of(golden).substr(0, 4096 + 2 * 1280), least = small().bytes;
  std::mt19937 draw(5);
  const auto below = [&](std::size_t count) { return draw() % count; };
  const std::uint64_t numbers[] = {
      0, 1, 8, 9, 31, 0xffffffff, std::uint64_t{1} << 31, std::uint64_t{1} << 62, ~std::uint64_t{0}};
  int good = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = i % 2 ? whole : least;
    for (std::size_t edits = 1 + below(3); edits > 0; --edits) {
      const std::size_t at = below(std::min<std::size_t>(bytes.size(), 4096)), length = below(24);
      const std::uint64_t number = numbers[below(std::size(numbers))];
      switch (below(5)) {
        case 0:
          bytes[at] = static_cast<char>(draw());
          break;
        case 1:
          bytes.erase(at, length);
          break;
        case 2:
          bytes.insert(at, bytes.substr(below(bytes.size()), length));
          break;
        case 3:
          bytes.replace(at, 4, reinterpret_cast<const char*>(&number), 4);
          break;
        default:
          bytes.replace(at, 8, reinterpret_cast<const char*>(&number), 8);
      }
    }
    const std::vector<char> exact(bytes.begin(), bytes.end());  // so that sanitizers see the end
    ASSERT_EQ(skim_test::broken_gguf_invariant(exact.data(), exact.size()), "") << i;
    good += file::view(exact.data(), exact.size()).ok();
  }
  EXPECT_GT(good, 200) << "edits that leave it whole are looked at too";
}

}  // namespace
