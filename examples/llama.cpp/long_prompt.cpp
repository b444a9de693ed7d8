// SPDX-License-Identifier: Apache-2.0
// A prompt that is longer than the cache, and an answer from it: tokens leave by skim's evictor after each chunk.
//   long_prompt MODEL.gguf libggml-skim.so TEXT [TOKENS [CELLS]]
#include "host.hpp"
#include "prompt.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>

namespace {

std::string text_of(const llama_vocab* vocab, const prefill::tokens& tokens, int begin, int end) {
  std::string text;
  for (int i = begin; i < end; ++i) {
    char piece[64];
    const int n = llama_token_to_piece(vocab, tokens[static_cast<std::size_t>(i)], piece,
                                       static_cast<int>(sizeof piece), 0, false);
    text.append(piece, static_cast<std::size_t>(std::max(n, 0)));
  }
  return text;
}

void run(const char* model_path, const char* backend, const char* text_path, int length, int cells) {
  constexpr int ubatch = 512;
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  const prefill::backend_functions skim = prefill::load_backend(backend);
  ggml_backend_load_all();
  const std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
      llama_model_load_from_file(model_path, llama_model_default_params()), llama_model_free);
  std::ifstream file(text_path);
  if (!model || !file) throw std::runtime_error("the model or the text cannot be read");
  const llama_vocab* const vocab = llama_model_get_vocab(model.get());
  const std::string prose((std::istreambuf_iterator<char>(file)), {});
  prefill::prompt asked = prefill::make_prompt(vocab, prefill::tokenised(vocab, prose, false), length, 0);
  int answer = 1;  // tokens of the first answer, which the prompt ends before
  while (asked.answers[static_cast<std::size_t>(answer)] == asked.answers[0] + answer) ++answer;
  const int end = asked.answers[0];
  const std::string expected = text_of(vocab, asked.text, end, end + answer);
  asked.text.resize(static_cast<std::size_t>(end));

  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>(cells);
  params.n_batch = params.n_ubatch = ubatch;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  const std::unique_ptr<llama_context, decltype(&llama_free)> context(llama_init_from_model(model.get(), params),
                                                                      llama_free);
  if (!context) throw std::runtime_error("llama.cpp gives no context");
  skim.watch(1);
  std::vector<llama_pos> held;
  for (int begin = 0; begin < end; begin += ubatch) {
    const int next = std::min(begin + ubatch, end);
    prefill::decode(*context, asked.text, begin, next, [end](int i) { return i == end - 1; });
    for (int i = begin; i < next; ++i) held.push_back(i);
    prefill::evict(*context, skim, "standard", cells - ubatch, held);
    std::fprintf(stderr, "\r%d of %d tokens read, %zu held", next, end, held.size());
  }
  std::fputs("\n", stderr);
  for (int i = 0; i < answer; ++i) {
    const float* const logits = llama_get_logits_ith(context.get(), -1);
    asked.text.push_back(
        static_cast<llama_token>(std::max_element(logits, logits + llama_vocab_n_tokens(vocab)) - logits));
    prefill::decode(*context, asked.text, end + i, end + i + 1, [](int) { return true; });
  }
  std::printf("...%s|%s (in the text: %s)\n", text_of(vocab, asked.text, end - 24, end).c_str(),
              text_of(vocab, asked.text, end, end + answer).c_str(), expected.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: long_prompt MODEL.gguf libggml-skim.so TEXT [TOKENS, 4096 [CELLS, 2048]]\n");
    return 2;
  }
  try {
    run(argv[1], argv[2], argv[3], argc > 4 ? std::atoi(argv[4]) : 4096, argc > 5 ? std::atoi(argv[5]) : 2048);
  } catch (const std::exception& problem) {
    std::fprintf(stderr, "error: %s\n", problem.what());
    return 1;
  }
}
