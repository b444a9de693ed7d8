// SPDX-License-Identifier: Apache-2.0
#include "support/safetensors_invariants.hpp"

#include <gtest/gtest.h>

#include <random>

namespace {

using skim::safetensors::file;
using skim::safetensors::tensor;

std::string length_of(std::uint64_t bytes) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += static_cast<char>(bytes >> (8 * i) & 0xff);
  return text;
}

std::string file_of(const std::string& header, std::size_t data_bytes) {
  std::string bytes = length_of(header.size()) + header;
  for (std::size_t i = 0; i < data_bytes; ++i) bytes += static_cast<char>(i);
  return bytes;
}

file view(const std::string& bytes) {
  return file::view(bytes.data(), bytes.size());
}

const std::string small_header = R"({"__metadata__":{"format":"pt"},)"
                                 R"("weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                                 R"("bias":{"shape":[5],"data_offsets":[24,34],"dtype":"BF16"},)"
                                 R"("scalar":{"dtype":"U8","shape":[],"data_offsets":[34,35]},)"
                                 R"("nothing":{"dtype":"I64","shape":[7,0],"data_offsets":[34,34]}})";
constexpr std::size_t small_data = 35;

/// A temporary file that holds `bytes`.
class stored_file {
 public:
  explicit stored_file(const std::string& bytes)
      : path_(std::filesystem::path(testing::TempDir()) /
              ("skim_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()) + ".safetensors")) {
    std::ofstream(path_, std::ios::binary) << bytes;
  }
  ~stored_file() { std::filesystem::remove(path_); }
  stored_file(const stored_file&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

void expect_small(const file& given) {
  ASSERT_TRUE(given.ok()) << given.error();
  ASSERT_EQ(given.tensors().size(), 4u);
  EXPECT_EQ(given.tensors()[0].name, "bias");
  EXPECT_EQ(given.find("absent"), nullptr);
  const tensor *weight = given.find("weight"), *scalar = given.find("scalar"), *nothing = given.find("nothing");
  ASSERT_TRUE(weight && scalar && nothing);
  EXPECT_STREQ(weight->dtype.name, "F32");
  EXPECT_EQ(weight->shape, (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(weight->bytes, 24u);
  EXPECT_EQ(static_cast<const char*>(weight->data)[5], 5);
  EXPECT_TRUE(scalar->shape.empty());
  EXPECT_EQ(static_cast<const char*>(scalar->data)[0], 34);
  EXPECT_EQ(nothing->bytes, 0u);
}

TEST(safetensors, reads_from_memory) {
  expect_small(view(file_of(small_header, small_data)));
}

TEST(safetensors, reads_from_a_file_to_aligned_memory) {
  for (const char* padding : {"", " ", "  ", "   "}) {
    const stored_file stored(file_of(small_header + padding, small_data));
    const file given = file::read(stored.path());
    expect_small(given);
    const auto weight = given.find("weight")->view<2>();
    const auto bias = given.find("bias")->view<1>();
    ASSERT_TRUE(weight && bias);
    EXPECT_EQ(weight->extents[1], 3);
    EXPECT_EQ(weight->type, skim::element::f32);
    EXPECT_EQ(bias->type, skim::element::bf16);
    EXPECT_FALSE(given.find("weight")->view<1>()) << "another rank";
    EXPECT_FALSE(given.find("nothing")->view<2>()) << "elements that skim cannot compute with";
  }
}

TEST(safetensors, misaligned_tensors_have_no_view) {
  const stored_file stored(file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                   R"("b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
                                   5));
  const file given = file::read(stored.path());
  ASSERT_TRUE(given.ok()) << given.error();
  EXPECT_FALSE(given.find("b")->view<1>());
}

TEST(safetensors, unknown_types_are_listed_and_have_no_view) {
  const std::string types[] = {"F4", "F6_E2M3", "F8_E4M3", "F8_E5M2", "F8_E8M0", "C64", "MXFP4_OF_SOME_FUTURE\x1b[31m"};
  for (const std::string& type : types) {
    const std::string name = nlohmann::json(type).dump();
    const stored_file stored(file_of(
        "{\"odd\":{\"dtype\":" + name + ",\"shape\":[1,8],\"data_offsets\":[0," + (type == "C64" ? "64" : "8") + "]}," +
            R"("plain":{"dtype":"F32","shape":[1,1],"data_offsets":[)" + (type == "C64" ? "64,68]}}" : "8,12]}}"),
        type == "C64" ? 68 : 12));
    file moved = file::read(stored.path());
    const file given = std::move(moved);
    ASSERT_TRUE(given.ok()) << type << ": " << given.error();
    const tensor* const odd = given.find("odd");
    ASSERT_NE(odd, nullptr) << type;
    EXPECT_EQ(odd->dtype.name, type);
    EXPECT_EQ(odd->bytes, type == "C64" ? 64u : 8u);
    EXPECT_FALSE(odd->view<2>()) << type;
    EXPECT_TRUE(given.find("plain")->view<2>()) << "beside " << type;
  }
}

TEST(safetensors, spaces_may_follow_the_header_but_no_zero_byte) {
  EXPECT_TRUE(view(file_of("{}   ", 0)).ok());
  for (const std::string& header : {std::string("{}\0", 3), std::string("{}\0}", 4), std::string("{\0}", 3)}) {
    EXPECT_NE(view(file_of(header, 0)).error().find("not valid JSON at its byte "), std::string::npos)
        << view(file_of(header, 0)).error();
  }
}

TEST(safetensors, an_empty_map_is_a_file_without_tensors) {
  EXPECT_TRUE(view(file_of("{}", 0)).ok());
}

struct bad_header {
  const char* header;
  std::size_t data;
  const char* complaint;
};

class refused : public testing::TestWithParam<bad_header> {};

TEST_P(refused, names_what_is_wrong) {
  const file given = view(file_of(GetParam().header, GetParam().data));
  EXPECT_FALSE(given.ok());
  EXPECT_NE(given.error().find(GetParam().complaint), std::string::npos) << given.error();
  EXPECT_TRUE(given.tensors().empty());
}

INSTANTIATE_TEST_SUITE_P(
    headers, refused,
    testing::Values(
        bad_header{"", 0, "not a JSON object"}, bad_header{"{", 0, "not valid JSON"},
        bad_header{"{} {}", 0, "not valid"}, bad_header{"\xef\xbb\xbf{}", 0, "does not begin with '{'"},
        bad_header{" {}", 0, "does not begin with '{'"}, bad_header{"\n{}", 0, "does not begin with '{'"},
        bad_header{"{}]", 0, "not valid JSON at its byte 3"}, bad_header{"[]", 0, "not a JSON object"},
        bad_header{"7", 0, "not a JSON object"}, bad_header{"\xff\xfe{}", 0, "not a JSON object"},
        bad_header{R"({"a":1})", 0, "'a' does not describe a tensor"},
        bad_header{R"({"a":[[[[[[]]]]]]})", 0, "'a' does not describe a tensor"},
        bad_header{R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4, "does not describe"},
        bad_header{R"({"a":{"dtype":"F32","shape":{"b":1},"data_offsets":[0,4]}})", 4, "does not describe"},
        bad_header{R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,4]}})", 4, "does not describe"},
        bad_header{R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "does not describe"},
        bad_header{R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "does not describe"},
        bad_header{R"({"a":{"dtype":"F32","shape":null,"data_offsets":[0,4]}})", 4, "does not describe"},
        bad_header{R"({"a":{"dtype":"F32","shape":[1],"data_offsets":["0",4]}})", 4, "does not describe"},
        bad_header{R"({"__metadata__":{"a":1}})", 0, "'__metadata__' does not describe"},
        bad_header{R"({"__metadata__":{},"__metadata__":{}})", 0, "two entries"},
        bad_header{R"({"a":{"dtype":"F4","shape":[18446744073709551615],"data_offsets":[0,4]}})", 4, "another size"},
        bad_header{R"({"a":{"dtype":"C64","shape":[1],"data_offsets":[0,4]}})", 4, "another size"},
        bad_header{R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"b":0}})", 4, "unknown field 'b'"},
        bad_header{R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4, "two fields 'dtype'"},
        bad_header{R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4, "no field 'shape'"},
        bad_header{R"({"a":{}})", 0, "no field 'dtype'"},
        bad_header{R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4, "needs two data_offsets"},
        bad_header{R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4, "needs two data_offsets"},
        bad_header{R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "ends before it begins"},
        bad_header{R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4, "outside the file"},
        bad_header{R"({"a":{"dtype":"U8","shape":[9],"data_offsets":[18446744073709551615,8]}})", 8, "ends before"},
        bad_header{R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "another size than its shape"},
        bad_header{R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "another size"},
        bad_header{R"({"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}})", 4, "another size"},
        bad_header{R"({"a":{"dtype":"U8","shape":[0,18446744073709551615],"data_offsets":[0,0]}})", 0, "another size"},
        bad_header{R"({"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,4]}})", 4, "not describe"},
        bad_header{R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                   R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                   2, "two tensors are named 'a'"},
        bad_header{R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                   R"("b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                   3, "'b' overlaps another"},
        bad_header{R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                   R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
                   3, "hole before tensor 'b'"},
        bad_header{R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 2, "cover 1 bytes of data"},
        bad_header{"{\"a\\n\\u0007\":1}", 0, "'a?\x3f' does not"}));

TEST(safetensors, refuses_lengths_beyond_the_file) {
  EXPECT_FALSE(view("").ok());
  EXPECT_FALSE(view("1234567").ok());
  for (const std::uint64_t length :
       {std::uint64_t{3}, std::uint64_t{1} << 32, std::uint64_t{1} << 63, ~std::uint64_t{0}, ~std::uint64_t{7}}) {
    EXPECT_NE(view(length_of(length) + "{}").error().find("the header claims"), std::string::npos) << length;
  }
}

TEST(safetensors, refuses_what_cannot_be_read) {
  EXPECT_EQ(file::read("/nonexistent/model.safetensors").error(), "no such file");
  EXPECT_EQ(file::read(testing::TempDir()).error(), "no such file") << "a directory";
  EXPECT_EQ(file::read("/dev/zero").error(), "no such file") << "a file without an end";
  const stored_file empty("");
  EXPECT_EQ(file::read(empty.path()).error(), "too short for a safetensors file");
}

TEST(safetensors, a_long_header_is_refused_before_memory_is_taken) {
  const stored_file stored(length_of(skim::safetensors::longest_header + 1) + "{}");
  std::filesystem::resize_file(stored.path(), skim::safetensors::longest_header + 100);
  EXPECT_EQ(file::read(stored.path()).error(), "the header is longer than the format allows");
}

TEST(safetensors, every_truncation_is_refused) {
  const std::string bytes = file_of(small_header, small_data);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const std::vector<char> cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_FALSE(file::view(cut.data(), cut.size()).ok()) << size;
    EXPECT_EQ(skim_test::broken_invariant(cut.data(), cut.size()), "") << size;
  }
}

/// One to four random edits: bytes set, erased, inserted, pieces copied over others, numbers exchanged for hostile ones.
std::string mutated(std::string bytes, std::mt19937& random) {
  const auto below = [&](std::size_t count) { return random() % count; };
  const char* const tokens[] = {"0",
                                "1",
                                "18446744073709551615",
                                "9223372036854775808",
                                "4294967296",
                                "-1",
                                "1e9",
                                "{}",
                                "[]",
                                "null",
                                "\"F32\"",
                                "\"BF16\"",
                                ",",
                                "}",
                                "[[[[[[[[",
                                "\"a\":",
                                "\\ud800",
                                "\xc3"};
  for (std::size_t edits = 1 + below(4); edits > 0 && !bytes.empty(); --edits) {
    const std::size_t at = below(bytes.size()), length = below(std::min<std::size_t>(bytes.size() - at, 40) + 1);
    switch (below(7)) {
      case 0:
        bytes[at] = static_cast<char>(random());
        break;
      case 1:
        bytes.erase(at, length);
        break;
      case 2:
        bytes.insert(at, bytes.substr(below(bytes.size()), length));
        break;
      case 3:
        bytes.replace(at, length, tokens[below(std::size(tokens))]);
        break;
      case 4:
        bytes[below(std::min<std::size_t>(bytes.size(), 8))] = static_cast<char>(random());
        break;
      case 5: {  // a number, whole
        const std::size_t from = bytes.find_first_of("0123456789", at);
        if (from == std::string::npos) break;
        const std::size_t to = std::min(bytes.find_first_not_of("0123456789", from), bytes.size());
        bytes.replace(from, to - from, below(2) ? tokens[below(6)] : std::to_string(below(80)));
        break;
      }
      default:
        bytes.resize(at);
    }
  }
  if (bytes.size() > 8 && below(2)) {  // an honest length, so that edits reach the checks behind it
    const std::size_t end = bytes.rfind('}');
    if (end != std::string::npos && end >= 8) bytes.replace(0, 8, length_of(end - 7));
  }
  return bytes;
}

TEST(safetensors, survives_mutations) {
  const std::string good[] = {
      file_of(small_header, small_data), file_of("{}", 0),
      file_of(R"({"a":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],)"
              R"("data_offsets":[8,12]}})",
              12)};
  std::mt19937 random(1);
  int accepted = 0;
  for (int i = 0; i < 30000; ++i) {
    const std::string bytes = mutated(good[random() % std::size(good)], random);
    const std::vector<char> exact(bytes.begin(), bytes.end());  // no spare room behind its end
    ASSERT_EQ(skim_test::broken_invariant(exact.data(), exact.size()), "") << "mutation " << i;
    accepted += file::view(exact.data(), exact.size()).ok();
  }
  EXPECT_GT(accepted, 300) << "too few mutations get past the first check";
}

}  // namespace
