// SPDX-License-Identifier: Apache-2.0
// The backend inside llama.cpp: what an application does with caches, threads and contexts gives the logits that llama.cpp
// gives alone. Arguments: the backend, a model. Its weights are widened to f16 first: with those of 4 bits, activations are
// rounded to 8, and any two correct kernels differ.
#include "host.hpp"
#include "window_model.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

using model_pointer = std::unique_ptr<llama_model, decltype(&llama_model_free)>;
using context_pointer = std::unique_ptr<llama_context, decltype(&llama_free)>;
using logits = std::vector<float>;

prefill::backend_functions skim_backend;
std::string told;  // by llama.cpp, in warnings and notes
bool all_good = true;

const char* configure(const char* setting) {
  return skim_backend.configure(setting);
}

void expect(bool good, const std::string& what) {
  std::printf("%s %s\n", good ? "ok  " : "FAIL", what.c_str());
  std::fflush(stdout);
  all_good &= good;
}

struct setup {
  std::uint32_t cells = 1024, sequences = 1, ubatch = 256;
  bool unified = false;
  int threads = 2;
  llama_flash_attn_type flash = LLAMA_FLASH_ATTN_TYPE_AUTO;
  ggml_type cache = GGML_TYPE_F16;
};

context_pointer new_context(llama_model& model, const setup& s) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = s.cells;
  params.n_batch = params.n_ubatch = s.ubatch;
  params.n_seq_max = s.sequences;
  params.kv_unified = s.unified;
  params.n_threads = params.n_threads_batch = s.threads;
  params.flash_attn_type = s.flash;
  params.type_k = params.type_v = s.cache;
  context_pointer made(llama_init_from_model(&model, params), llama_free);
  if (!made) std::printf("FAIL no context\n"), std::exit(1);
  return made;
}

struct row {
  llama_token token;
  llama_pos position;
  llama_seq_id sequence;
};

/// Decodes the rows; appends the logits of each sequence's last one.
void decode(llama_context& context, const std::vector<row>& rows, logits& out) {
  const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(&context)));
  llama_batch batch = llama_batch_init(static_cast<int>(rows.size()), 0, 1);
  std::vector<int> last;
  for (const row& r : rows) {
    const int at = batch.n_tokens++;
    batch.token[at] = r.token;
    batch.pos[at] = r.position;
    batch.n_seq_id[at] = 1;
    batch.seq_id[at][0] = r.sequence;
    const bool ends =
        std::none_of(rows.begin() + at + 1, rows.end(), [&](const row& o) { return o.sequence == r.sequence; });
    batch.logits[at] = ends;
    if (ends) last.push_back(at);
  }
  const int code = llama_decode(&context, batch);
  llama_batch_free(batch);
  if (code != 0) return expect(false, "llama_decode says " + std::to_string(code));
  for (const int at : last) {
    const float* const found = llama_get_logits_ith(&context, at);
    out.insert(out.end(), found, found + vocabulary);
  }
}

/// Tokens without meaning, the same for the same seed.
std::vector<row> text(int count, llama_pos first, llama_seq_id sequence, unsigned seed) {
  std::vector<row> rows;
  for (int i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    rows.push_back({static_cast<llama_token>(100 + (seed >> 16) % 2000), first + i, sequence});
  }
  return rows;
}

std::vector<row> joined(std::vector<row> a, const std::vector<row>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::vector<row> in_turn(const std::vector<row>& a, const std::vector<row>& b) {
  std::vector<row> rows;
  for (std::size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    if (i < a.size()) rows.push_back(a[i]);
    if (i < b.size()) rows.push_back(b[i]);
  }
  return rows;
}

double distance(const logits& a, const logits& b) {
  double error = 0, power = 0;
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i) {
    error += (static_cast<double>(a[i]) - static_cast<double>(b[i])) *
             (static_cast<double>(a[i]) - static_cast<double>(b[i]));
    power += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return a.size() == b.size() && power > 0 ? error / power : 1;
}

using scenario = std::function<logits(llama_context&)>;

/// The scenario under llama.cpp alone and under the backend: other bits, the same logits.
void compare(const std::string& name, llama_model& model, const setup& s, const scenario& run, double most = 1e-4) {
  configure("off");
  const logits expected = run(*new_context(model, s));
  configure("dense");
  told.clear();
  const logits found = run(*new_context(model, s));
  const double error = distance(found, expected);
  char text[160];
  std::snprintf(text, sizeof text, "%s: NMSE %.1e%s", name.c_str(), error,
                found == expected ? ", and the same bits" : "");
  const bool disabled = told.find("set to disabled") != std::string::npos;
  // Equal bits would mean that the backend was not asked.
  expect(error < most && found != expected && !disabled,
         text + std::string(disabled ? ", flash attention was turned off" : ""));
}

logits greedy(llama_context& context, unsigned seed) {
  const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(&context)));
  logits last, tokens;
  decode(context, text(200, 0, 0, seed), last);
  for (llama_pos at = 200; at < 232; ++at) {
    const auto best =
        static_cast<llama_token>(std::max_element(last.end() - vocabulary, last.end()) - (last.end() - vocabulary));
    tokens.push_back(static_cast<float>(best));
    last.clear();
    decode(context, {{best, at, 0}}, last);
  }
  return tokens;
}

/// Three chunks in a cache that holds 300 tokens: the evictor's, then llama.cpp alone with the same tokens taken out.
void bounded(llama_model& model, const char* rule, bool protects) {
  constexpr int budget = 300, chunk = 230;
  std::vector<std::vector<llama_pos>> stayed;
  const auto run = [&](bool asks) {
    const context_pointer context = new_context(model, {});
    std::vector<llama_pos> held;
    logits out;
    for (int i = 0; i < 4; ++i) {
      decode(*context, text(chunk, chunk * i, 0, 5u + static_cast<unsigned>(i)), out);
      for (int t = 0; t < chunk; ++t) held.push_back(chunk * i + t);
      if (asks) {
        prefill::evict(*context, skim_backend, rule, budget, held);
        stayed.push_back(held);
        continue;
      }
      const std::vector<llama_pos>& stays = stayed[static_cast<std::size_t>(i)];
      for (const llama_pos at : held) {
        if (!std::binary_search(stays.begin(), stays.end(), at))
          llama_memory_seq_rm(llama_get_memory(context.get()), 0, at, at + 1);
      }
      held = stays;
    }
    return out;
  };
  configure("dense");
  skim_backend.watch(1);
  const logits found = run(true);
  skim_backend.watch(0);
  configure("off");
  const double error = distance(found, run(false));
  const std::vector<llama_pos>& last = stayed.back();
  bool kept = last.size() == budget;
  for (int i = 0; protects && i < 75; ++i) {  // the first 4, the newest quarter
    kept &= (i >= 4 || last[static_cast<std::size_t>(i)] == i) &&
            last[budget - 1 - static_cast<std::size_t>(i)] == 4 * chunk - 1 - i;
  }
  char line[160];
  std::snprintf(line, sizeof line, "a cache bounded by the %s evictor, NMSE %.1e to llama.cpp without the same tokens",
                rule, error);
  expect(kept && error < 1e-4, line);
  std::int32_t none[8];
  expect(skim_backend.leaving("newest", 5, 4, none) == -1, "an evictor that there is not is refused");
  expect(skim_backend.leaving(rule, 5, 4, none) == -1, "a cache that was not seen is refused");
}

model_pointer load(const std::string& path) {
  model_pointer model(llama_model_load_from_file(path.c_str(), llama_model_default_params()), llama_model_free);
  if (!model) std::printf("FAIL %s cannot be loaded\n", path.c_str()), std::exit(1);
  return model;
}

void run_all(const std::string& path) {
  const model_pointer model = load(path);
  const scenario prompt = [](llama_context& context) {
    logits out;
    for (int chunk = 0; chunk < 3; ++chunk)
      decode(context, text(230, 230 * chunk, 0, 5u + static_cast<unsigned>(chunk)), out);
    decode(context, text(1, 690, 0, 9), out);
    decode(context, text(7, 691, 0, 9), out);
    return out;
  };
  compare("a prompt in chunks, then short ones", *model, {}, prompt);
  setup s;
  s.flash = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  compare("with flash attention on", *model, s, prompt);
  for (const int threads : {1, 7}) {
    s = {};
    s.threads = threads;
    compare(std::to_string(threads) + " threads", *model, s, prompt);
  }
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
    s = {};
    s.cache = type;
    // Numbers that differ in their last bits are now and then stored as another code, which with 4 bits is far from the first.
    compare(std::string("a cache of ") + ggml_type_name(type), *model, s, prompt, type == GGML_TYPE_Q4_0 ? 1e-3 : 1e-4);
  }
  for (const std::uint32_t sequences : {8u, 64u}) {
    for (const bool unified : {false, true}) {
      s = {};
      s.sequences = sequences;
      s.unified = unified;
      s.cells = 256 * sequences;
      compare(std::to_string(sequences) + (unified ? " sequences in one cache" : " sequences in caches of their own"),
              *model, s, [](llama_context& context) {
                logits out;
                decode(context, joined(text(100, 0, 0, 1), text(100, 0, 1, 2)), out);
                decode(context, in_turn(text(90, 100, 0, 3), text(90, 100, 1, 4)), out);
                decode(context, joined(joined(text(1, 190, 0, 5), text(1, 190, 1, 6)), text(120, 0, 2, 7)), out);
                return out;
              });
    }
  }
  s = {};
  s.sequences = 4;
  s.unified = true;
  compare("a prefix that two sequences share, one cut back, cells used again", *model, s, [](llama_context& context) {
    llama_memory_t memory = llama_get_memory(&context);
    logits out;
    decode(context, text(150, 0, 0, 1), out);
    llama_memory_seq_cp(memory, 0, 1, -1, -1);
    decode(context, joined(text(80, 150, 0, 2), text(80, 150, 1, 3)), out);
    llama_memory_seq_rm(memory, 0, 100, -1);
    decode(context, text(120, 100, 0, 4), out);
    llama_memory_seq_rm(memory, 1, -1, -1);
    decode(context, text(200, 0, 2, 5), out);
    return out;
  });
  compare("a context that is shifted", *model, {}, [](llama_context& context) {
    llama_memory_t memory = llama_get_memory(&context);
    logits out;
    decode(context, text(250, 0, 0, 1), out);
    llama_memory_seq_rm(memory, 0, 20, 120);
    llama_memory_seq_add(memory, 0, 120, -1, -100);
    decode(context, text(200, 150, 0, 2), out);
    return out;
  });
  bounded(*model, "standard", true);
  bounded(*model, "keydiff", false);
  int same = 0;
  for (unsigned seed = 1; seed <= 8; ++seed) {
    configure("off");
    const logits expected = greedy(*new_context(*model, {}), seed);
    configure("dense");
    same += greedy(*new_context(*model, {}), seed) == expected;
  }
  expect(same == 8, "the same 32 greedy tokens behind " + std::to_string(same) + " of 8 prompts");

  const std::string windows = path + ".windows.gguf";
  if (!skim_llama::write_window_model(windows, 128))
    std::printf("FAIL %s cannot be written\n", windows.c_str()), std::exit(1);
  const model_pointer second = load(windows);
  compare("layers with sliding windows", *second, {}, prompt);
  s = {};
  s.sequences = 2;
  compare("windows, and two sequences", *second, s, [](llama_context& context) {
    logits out;
    decode(context, in_turn(text(100, 0, 0, 1), text(120, 0, 1, 2)), out);
    decode(context, in_turn(text(90, 100, 0, 3), text(100, 120, 1, 4)), out);
    return out;
  });

  configure("dense");
  const logits alone = prompt(*new_context(*model, {})), second_alone = prompt(*new_context(*second, {}));
  logits of_first, of_second;
  std::thread other([&] { of_second = prompt(*new_context(*second, {})); });
  for (int i = 0; i < 3; ++i) {  // contexts come and go beside it
    const logits here = prompt(*new_context(*model, {}));
    if (i == 0) of_first = here;
  }
  other.join();
  // Not the same bits: who computes short chunks depends on what contexts there are.
  expect(distance(of_first, alone) < 1e-4 && distance(of_second, second_alone) < 1e-4,
         "two models at once, contexts freed while another computes");
  expect(configure("budget=64,queries=16") == nullptr, "a budget less than what is always read is taken");
  expect(distance(prompt(*new_context(*model, {})), alone) > 1e-6, "QUOKA leaves something out");
  for (const char* const none : {"budget=many", "budget=0", "budget", "keys=3", "queries=64,paper", "sparse"}) {
    const char* const problem = configure(none);
    expect(problem && std::string(problem).find("budget=512") != std::string::npos,
           std::string("'") + none + "' is refused, and what is valid listed");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: backend_test libggml-skim.so MODEL.gguf\n");
    return 2;
  }
  llama_log_set(
      [](ggml_log_level, const char* line, void*) {
        static std::mutex mutex;  // two threads load and compute at once
        const std::lock_guard<std::mutex> hold(mutex);
        told += line;
      },
      nullptr);
  try {
    skim_backend = prefill::load_backend(argv[1]);
  } catch (const std::runtime_error& problem) {
    std::printf("FAIL %s: %s\n", problem.what(), told.c_str());
    return 1;
  }
  ggml_backend_load_all();
  llama_backend_init();
  try {
    run_all(prefill::widened(argv[2], LLAMA_FTYPE_MOSTLY_F16, "f16"));
  } catch (const std::runtime_error& problem) {
    std::printf("FAIL %s\n", problem.what());
    return 1;
  }
  std::printf(all_good ? "all good\n" : "FAILED\n");
  return all_good ? 0 : 1;
}
