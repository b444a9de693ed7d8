// SPDX-License-Identifier: Apache-2.0
/// \file libFuzzer target for the vocabularies of model directories, built on request with Clang:
///   cmake --build BUILD --target needle_tokenizer_fuzz && BUILD/examples/needle/needle_tokenizer_fuzz -max_total_time=60
/// An input is the text of `tokenizer.json`; behind a zero byte may follow that of `tokenizer_config.json`.
#include "../error.hpp"
#include "../tokenizer.hpp"
#include "support/reader_error.hpp"

#include <cstdio>
#include <cstdlib>

namespace {

/// An empty string, or what does not hold.
std::string broken(const needle::vocabulary_files& files) {
  try {
    const needle::tokenizer words(needle::parse_vocabulary(files));
    for (const std::int32_t special : {words.begin(), words.end()}) {
      if (special < -1 || special >= words.size()) return "a special token is none";
    }
    const std::string text = "It's \xe4\xbd\xa0\xc3\xa9 <a>  12\xff\n\n\xe2\x96\x81\x01";
    const std::vector<std::int32_t> tokens = words.encode(text);
    for (const std::int32_t token : tokens) {
      if (token < 0 || token >= words.size()) return "a text has a token that is none";
    }
    words.decode(tokens);
    return "";
  } catch (const needle::error& problem) {
    const std::string broken = skim_test::broken_error(problem.what(), 600);
    return broken.empty() ? "" : broken + ": " + problem.what();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  const std::string all(reinterpret_cast<const char*>(bytes), size);
  const std::size_t zero = all.find('\0');
  const std::string problem =
      broken({all.substr(0, zero), zero != all.npos ? all.substr(zero + 1) : "", "", R"({"eos_token_id": [0, 1]})"});
  if (problem.empty()) return 0;
  std::fprintf(stderr, "%s\n", problem.c_str());
  std::abort();
}
