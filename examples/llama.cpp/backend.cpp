// SPDX-License-Identifier: Apache-2.0
/// \file A backend that llama.cpp loads: flash-attention nodes are computed by skim, and products with weights of a few types;
/// everything else stays with the host.
///
/// It is an accelerator device beside the CPU's, as ggml's BLAS backend is: it works in the host's buffers, so nothing is
/// copied, and the scheduler hands it what `supports_op` accepts. Rows of generation are refused and stay with the host.
#include "cache_watch.hpp"
#include "settings.hpp"

#include <skim/cpu/dispatch.hpp>
#include <skim/interop/ggml.hpp>
#include <skim/interop/ggml_linear.hpp>

#include <ggml-backend-impl.h>
#include <omp.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <unordered_set>

namespace {

using namespace skim_llama;

std::mutex mutex;                        // of what all contexts share, down to `watching`
std::shared_ptr<const settings> wanted;  // set before the device can be found
/// Caches, by their address, that a node with many rows has been seen of. llama.cpp asks for a graph with one token a
/// sequence first, and turns flash attention off if that is not computed where the layer lives; so short nodes are taken
/// once there was a long one, and not before.
std::unordered_set<const void*> known_caches;

struct backend_context;
backend_context* computed_last = nullptr;  // of those that are watched
std::atomic<bool> watching{false};

constexpr std::int64_t least_rows = 4;  // fewer are generation
std::int64_t many_rows = 64 + 1;        // more than llama.cpp asks for first: a token for each of -np sequences
std::int64_t product_rows = 96;         // of fewer, widening a weight costs more than tiles save

std::shared_ptr<const settings> current() {
  const std::lock_guard<std::mutex> hold(mutex);
  return wanted;
}

/// Null where all is well, else what is wrong, for as long as nobody asks again.
const char* configure(const char* text) {
  static std::string problem;
  try {
    const auto read = std::make_shared<const settings>(settings_of(text ? text : ""));
    const std::lock_guard<std::mutex> hold(mutex);
    wanted = read;
    return nullptr;
  } catch (const std::invalid_argument& refused) {
    problem = refused.what();
    return problem.c_str();
  }
}

/// The threads of the compiler's OpenMP, which are ggml's too where it was built with it: the same team, so that nobody
/// waits for a core on which somebody else spins.
struct openmp_executor {
  int threads;

  unsigned concurrency() const { return static_cast<unsigned>(threads); }
  template <class Body>
  void parallel_for(std::int64_t n, const Body& body) const {
    if (n <= 1 || threads == 1) {
      for (std::int64_t i = 0; i < n; ++i) body(i, 0u);
      return;
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (std::int64_t i = 0; i < n; ++i) body(i, static_cast<unsigned>(omp_get_thread_num()));
  }
};

/// What one context of llama.cpp computes with.
struct backend_context {
  std::shared_ptr<const settings> now;  // none before the first graph
  std::unique_ptr<skim::ggml_attention<skim::cpu::any_attention>> attention;
  skim::ggml_linear<skim::cpu::any_linear> linear;
  int threads = omp_get_max_threads();
  std::unique_ptr<cache_watch> watch;  // where eviction is on

  skim::report compute(ggml_tensor& node) {
    if (node.op == GGML_OP_MUL_MAT) return linear.compute(skim::ggml_product_of(node), openmp_executor{threads});
    if (watching || watch) {
      const std::lock_guard<std::mutex> hold(mutex);  // `leaving` looks at it from the host's thread
      if (!watching) {
        watch.reset();
      } else if (!watch) {
        watch = std::make_unique<cache_watch>();
      }
      if (watch) watch->see(node);
      computed_last = watch ? this : nullptr;
    }
    return attention->compute(skim::ggml_operands_of(node), openmp_executor{threads});
  }

  void look_at_settings() {
    const auto next = current();
    if (next == now) return;
    now = next;
    skim::cpu::any_attention op;
    if (now->quoka) op.selector = *now->quoka;
    attention = std::make_unique<skim::ggml_attention<skim::cpu::any_attention>>(op);
  }
};

/// From now on the caches of contexts are watched (or, at 0, no more), for `leaving`.
void watch(int on) {
  watching = on != 0;
}

/// Of the `tokens` tokens of the one sequence that the context holds which computed last, counted in the order in which they
/// came, which have to leave so that `budget` stay: by "standard", skim's evictor, or "keydiff", the paper's but for the newest
/// token, which stays. Writes them to `out`, ascending, and counts them as gone: take each one's position out of the context,
/// by llama_memory_seq_rm. The number of them; -1, with a line on stderr, where that is not what was seen.
std::int64_t leaving(const char* rule, std::int64_t tokens, std::int64_t budget, std::int32_t* out) {
  skim::cpu::any_eviction op{skim::evictors::standard(budget)};
  const bool keydiff = std::strcmp(rule, "keydiff") == 0;
  // The newest token stays in any case: llama.cpp takes the next one only where it follows that one's position.
  if (keydiff) op.evictor = skim::keydiff<>{skim::retention::budget(budget, 0, 1)};
  std::vector<std::int32_t> chosen;
  const std::lock_guard<std::mutex> hold(mutex);
  skim::report answer;
  if (!keydiff && std::strcmp(rule, "standard") != 0) {
    answer = skim::fault(skim::status::bad_value, "rule", rule, "standard or keydiff");
  } else if (!computed_last) {
    answer = skim::fault(skim::status::bad_value, "contexts that are watched and computed", 0, 1);
  } else {
    answer = computed_last->watch->choose(op, tokens, openmp_executor{computed_last->threads}, chosen);
  }
  if (!answer) {
    char text[256];
    std::fprintf(stderr, "skim: %s\n", skim::describe(answer, text, sizeof text));
    return -1;
  }
  std::copy(chosen.begin(), chosen.end(), out);
  return static_cast<std::int64_t>(chosen.size());
}

/// Weights that llama.cpp multiplies a row at a time on x86-64: on a core of Zen 5 at 50 to 80 GF/s, where skim, which widens
/// them first, has 120 to 130. For other types it has tiles, which are as fast or faster.
bool multiplied_slowly(ggml_type type) {
#if defined(__x86_64__)
  return type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q5_1 || type == GGML_TYPE_MXFP4 || type == GGML_TYPE_NVFP4 ||
         type == GGML_TYPE_TQ1_0;
#else
  return (void)type, false;
#endif
}

bool takes_product(const ggml_tensor& node) {
  return node.op == GGML_OP_MUL_MAT && node.src[0] && node.src[1] && multiplied_slowly(node.src[0]->type) &&
         node.src[1]->ne[1] >= product_rows && current()->on &&
         skim::check(skim::ggml_product_of(const_cast<ggml_tensor&>(node)));
}

bool takes(const ggml_tensor& node) {
  if (node.op != GGML_OP_FLASH_ATTN_EXT || !node.src[0] || !node.src[1] || !current()->on) return false;
  const std::int64_t rows = node.src[0]->ne[1];
  if (rows < least_rows || !skim::check(skim::ggml_operands_of(const_cast<ggml_tensor&>(node)))) return false;
  const ggml_tensor* cache = node.src[1];
  while (cache->view_src) cache = cache->view_src;
  const std::lock_guard<std::mutex> hold(mutex);
  if (rows >= many_rows) known_caches.insert(cache->data);
  return rows >= many_rows || (cache->data && known_caches.count(cache->data) != 0);
}

backend_context& context_of(ggml_backend_t backend) {
  return *static_cast<backend_context*>(backend->context);
}

ggml_status compute_graph(ggml_backend_t backend, ggml_cgraph* graph) {
  backend_context& context = context_of(backend);
  context.look_at_settings();
  for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
    ggml_tensor* const node = ggml_graph_node(graph, i);
    const bool computes = node->op == GGML_OP_FLASH_ATTN_EXT || node->op == GGML_OP_MUL_MAT;
    if (!computes || (node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) continue;
    if (const skim::report report = context.compute(*node); !report) {
      char text[256];
      std::fprintf(stderr, "skim: %s: %s\n", node->name, skim::describe(report, text, sizeof text));
      return GGML_STATUS_FAILED;
    }
  }
  return GGML_STATUS_SUCCESS;
}

ggml_backend_t new_backend(ggml_backend_dev_t device, const char*) {
  static ggml_guid id = {0x5b, 0x1d, 0x8e, 0x0a, 0x41, 0x77, 0x4c, 0x39,
                         0x9a, 0x52, 0x73, 0x6b, 0x69, 0x6d, 0x30, 0x32};
  ggml_backend_i calls = {};
  calls.get_name = [](ggml_backend_t) { return "skim"; };
  calls.free = [](ggml_backend_t backend) {
    const std::lock_guard<std::mutex> hold(mutex);
    if (computed_last == &context_of(backend)) computed_last = nullptr;
    delete &context_of(backend);
    delete backend;
    // Another cache may come to lie where one of this context's was; those of others are seen again with their next chunk.
    known_caches.clear();
  };
  calls.graph_compute = compute_graph;
  return new ggml_backend{&id, calls, device, new backend_context};
}

void set_n_threads(ggml_backend_t backend, int n_threads) {
  context_of(backend).threads = n_threads > 0 ? n_threads : 1;
}

ggml_backend_device_i device_calls() {
  ggml_backend_device_i calls = {};
  calls.get_name = [](ggml_backend_dev_t) { return "skim"; };
  calls.get_description = [](ggml_backend_dev_t) { return "flash attention of chunks by skim"; };
  calls.get_memory = [](ggml_backend_dev_t, std::size_t* free, std::size_t* total) { *free = *total = 0; };
  calls.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; };
  calls.get_props = [](ggml_backend_dev_t device, ggml_backend_dev_props* props) {
    *props = {};
    props->name = ggml_backend_dev_name(device);
    props->description = ggml_backend_dev_description(device);
    props->type = GGML_BACKEND_DEVICE_TYPE_ACCEL;
  };
  calls.init_backend = new_backend;
  calls.get_buffer_type = [](ggml_backend_dev_t) {  // the CPU's, which is what makes the scheduler share nodes with us
    return ggml_backend_dev_buffer_type(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
  };
  calls.supports_op = [](ggml_backend_dev_t, const ggml_tensor* op) {
    return op->op == GGML_OP_NONE || op->op == GGML_OP_RESHAPE || op->op == GGML_OP_VIEW || op->op == GGML_OP_PERMUTE ||
           op->op == GGML_OP_TRANSPOSE || takes(*op) || takes_product(*op);
  };
  calls.supports_buft = [](ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
    return ggml_backend_buft_is_host(type);
  };
  return calls;
}

void* find_function(ggml_backend_reg_t, const char* name) {
  const std::string wanted_name = name;
  if (wanted_name == "ggml_backend_set_n_threads") return reinterpret_cast<void*>(set_n_threads);
  if (wanted_name == "skim_configure") return reinterpret_cast<void*>(configure);
  if (wanted_name == "skim_watch") return reinterpret_cast<void*>(watch);
  if (wanted_name == "skim_leaving") return reinterpret_cast<void*>(leaving);
  return nullptr;
}

ggml_backend_reg_t registration() {
  static ggml_backend_device device = {device_calls(), nullptr, nullptr};
  static ggml_backend_reg reg = [] {
    ggml_backend_reg_i calls = {};
    calls.get_name = [](ggml_backend_reg_t) { return "skim"; };
    calls.get_device_count = [](ggml_backend_reg_t) -> std::size_t { return 1; };
    calls.get_device = [](ggml_backend_reg_t, std::size_t) -> ggml_backend_dev_t { return &device; };
    calls.get_proc_address = find_function;
    return ggml_backend_reg{GGML_BACKEND_API_VERSION, calls, nullptr};
  }();
  device.reg = &reg;
  return &reg;
}

}  // namespace

/// What ggml looks for in a backend that it loads; a host that links this file registers it with
/// `ggml_backend_register(ggml_backend_init())`. Null where the environment asks for what there is not.
extern "C" {
GGML_BACKEND_API ggml_backend_reg_t ggml_backend_init();
GGML_BACKEND_API int ggml_backend_score();
}

ggml_backend_reg_t ggml_backend_init() {
  try {
    const auto text = [](const char* name) { return std::string(std::getenv(name) ? std::getenv(name) : ""); };
    if (const std::string level = text("SKIM_LEVEL"); !level.empty() && !skim::cpu::use_level(level.c_str())) {
      std::string here;
      skim::cpu::for_each_level([&](const char* name, bool runs) {
        if (runs) here += std::string(here.empty() ? "" : ", ") + name;
      });
      throw std::invalid_argument("'SKIM_LEVEL=" + level + "' is no level that runs here, expected one of " + here);
    }
    if (!skim::cpu::level_name()) throw std::invalid_argument("this processor has none of the levels it was built for");
    if (const std::string rows = text("SKIM_ROWS"); !rows.empty())
      many_rows = product_rows = whole_number("SKIM_ROWS=" + rows, rows);
    if (const std::string products = text("SKIM_PRODUCTS"); products == "off") {
      product_rows = std::numeric_limits<std::int64_t>::max();
    } else if (!products.empty() && products != "on") {
      throw std::invalid_argument("'SKIM_PRODUCTS=" + products + "' is neither on nor off");
    }
    wanted = std::make_shared<const settings>(settings_of(text("SKIM_QUOKA")));
  } catch (const std::invalid_argument& refused) {
    std::fprintf(stderr, "skim: not loaded: %s\n", refused.what());
    return nullptr;
  }
  std::fprintf(stderr,
               "skim: %s, by %s, for chunks of 4 rows and more; with more than 64 sequences in one cache set -fa on\n",
               current()->line.c_str(), skim::cpu::level_name());
  return registration();
}

/// 0: cannot run here.
int ggml_backend_score() {
  return skim::cpu::level_name() ? 1 : 0;
}
