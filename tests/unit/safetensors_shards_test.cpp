// SPDX-License-Identifier: Apache-2.0
#include <skim/interop/safetensors_shards.hpp>
#include <skim/interop/safetensors_writer.hpp>

#include <gtest/gtest.h>

#include <random>

namespace {

using skim::safetensors::checkpoint;

/// A directory of its own, gone with it.
class folder {
 public:
  folder()
      : path_(std::filesystem::path(testing::TempDir()) /
              ("skim_" + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()))) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directory(path_);
  }
  ~folder() { std::filesystem::remove_all(path_); }
  folder(const folder&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path index() const { return path_ / "model.safetensors.index.json"; }

  void write(const char* name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
  }
  /// A file with tensors of one number each, which is its place in `names`.
  void tensors(const char* name, const std::vector<std::string>& names) const {
    skim::safetensors::writer file;
    for (std::size_t i = 0; i < names.size(); ++i) file.add(names[i], {1}, {static_cast<float>(i)}, skim::element::f32);
    EXPECT_EQ(file.write(path_ / name), "");
  }
  checkpoint with_index(const std::string& text) const {
    write("model.safetensors.index.json", text);
    return checkpoint::read(path_);
  }

 private:
  std::filesystem::path path_;
};

float number(const checkpoint& of, const char* name) {
  const auto view = of.find(name)->view<1>();
  return view ? *static_cast<const float*>(view->data) : -1;
}

const std::string good = R"({"metadata":{"total_size":12,"deep":[[1,{"weight_map":2}]]},)"
                         R"("weight_map":{"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"}})";

void expect_two(const checkpoint& given) {
  ASSERT_TRUE(given.ok()) << given.error();
  EXPECT_EQ(given.tensors().size(), 3u);
  EXPECT_EQ(number(given, "a"), 1);
  EXPECT_EQ(number(given, "b"), 0);
  EXPECT_EQ(number(given, "c"), 1);
  EXPECT_EQ(given.find("spare"), nullptr);
}

TEST(shards, of_an_index) {
  const folder at;
  at.tensors("one.safetensors", {"spare", "a"});
  at.tensors("two.safetensors", {"b", "c"});
  checkpoint moved = at.with_index(good);
  const checkpoint given = std::move(moved);
  expect_two(given);
  expect_two(checkpoint::read(at.index()));
}

TEST(shards, one_file_reads_the_same_way) {
  const folder at;
  at.tensors("model.safetensors", {"b", "a", "c"});
  for (const std::filesystem::path& path : {at.path(), at.path() / "model.safetensors"}) {
    const checkpoint given = checkpoint::read(path);
    ASSERT_TRUE(given.ok()) << given.error();
    EXPECT_EQ(number(given, "a"), 1);
    EXPECT_EQ(given.tensors().size(), 3u);
  }
}

TEST(shards, an_index_without_tensors) {
  const folder at;
  EXPECT_TRUE(at.with_index(R"({"weight_map":{}})").ok());
}

TEST(shards, names_what_is_wrong) {
  const folder at;
  at.tensors("one.safetensors", {"a"});
  at.write("bad.safetensors", "none");
  const auto refused = [&](const std::string& text, const std::string& complaint) {
    const checkpoint given = at.with_index(text);
    EXPECT_FALSE(given.ok()) << text;
    EXPECT_NE(given.error().find(complaint), std::string::npos) << given.error();
    EXPECT_TRUE(given.tensors().empty());
  };
  refused("", "does not begin with '{'");
  refused("{", "not valid JSON at its byte 2");
  refused("\xef\xbb\xbf" + good, "does not begin with '{'");
  refused(good + std::string("\0rest", 5), "it has a zero byte");
  refused(R"({"weight_map":{"a":")" + std::string(256, 'x') + "\"}}", "expected the plain name of a file");
  refused("[]", "not a JSON object");
  refused("7", "not a JSON object");
  refused("{}", "there is no map 'weight_map'");
  refused(R"({"weight_map":7})", "there is no map 'weight_map'");
  refused(R"({"weight_map":{"a":7}})", "'a' is not the name of a file");
  refused(R"({"weight_map":{"a":null}})", "'a' is not the name of a file");
  refused(R"({"weight_map":{"a":["one.safetensors"]}})", "'a' is not the name of a file");
  refused(R"({"weight_map":{"a":{"b":"one.safetensors"}}})", "'a' is not the name of a file");
  refused(R"({"weight_map":{},"weight_map":{}})", "two entries 'weight_map'");
  refused(R"({"weight_map":{"a":"one.safetensors","a":"one.safetensors"}})", "two entries are named 'a'");
  for (const std::string name : {"../one.safetensors", "/etc/passwd", "..", ".", "", "a\\\\b", "c:d", "a\\u0000b"}) {
    refused(R"({"weight_map":{"a":")" + name + "\"}}", "expected the plain name of a file");
  }
  refused(R"({"weight_map":{"a":"none.safetensors"}})", "none.safetensors: no such file");
  refused(R"({"weight_map":{"a":"bad.safetensors"}})", "bad.safetensors: too short");
  refused(R"({"weight_map":{"a":"one.safetensors","b":"one.safetensors"}})", "there is no tensor 'b'");
  refused("{\"x\":" + std::string(100, '[') + std::string(100, ']') + "}", "nests too deeply");
  refused(R"({"weight_map":{"a":"one.safetensors"}} {})", "not valid JSON");
  std::string many;
  for (int i = 0; i < 5000; ++i) many += (i ? ",\"" : "\"") + std::to_string(i) + "\":\"" + std::to_string(i) + "\"";
  refused("{\"weight_map\":{" + many + "}}", "more files than 4096");
}

TEST(shards, refuses_what_cannot_be_read) {
  const folder at;
  EXPECT_NE(checkpoint::read(at.path()).error().find("has neither model.safetensors nor"), std::string::npos);
  EXPECT_NE(checkpoint::read(at.path() / "absent.json").error().find("no such file"), std::string::npos);
  EXPECT_NE(checkpoint::read(at.path() / "absent.safetensors").error().find("no such file"), std::string::npos);
  EXPECT_NE(checkpoint::read("/dev/zero\x1b[31m").error().find("/dev/zero?[31m: no such file"), std::string::npos);
  at.write("model.safetensors.index.json", "");
  std::filesystem::resize_file(at.index(), skim::safetensors::longest_index + 1);
  EXPECT_NE(checkpoint::read(at.path()).error().find("longer than is read"), std::string::npos);
}

TEST(shards, any_edit_is_read_or_refused) {
  const folder at;
  at.tensors("one.safetensors", {"spare", "a"});
  at.tensors("two.safetensors", {"b", "c"});
  std::mt19937 draw(3);
  int read = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text = good;
    for (int edits = 1 + static_cast<int>(draw() % 2); edits > 0; --edits) {
      const std::size_t place = draw() % text.size();
      if (draw() % 2)
        text[place] = static_cast<char>(draw());
      else
        text.erase(place, draw() % 6);
    }
    const checkpoint given = at.with_index(text);
    read += given.ok();
    EXPECT_EQ(given.ok(), given.error().empty());
    for (const char c : given.error()) ASSERT_TRUE(c >= ' ' && c <= '~') << text;
    for (const auto& [name, tensor] : given.tensors()) ASSERT_EQ(name, tensor->name);
  }
  EXPECT_GT(read, 30);
}

}  // namespace
