// SPDX-License-Identifier: Apache-2.0
/// \file `dispatch_run [LEVEL]`: the level that computes, or LEVEL, and the hash of the calls. 2 where it does not run here.
#include <cstdio>

const char* level_used(const char* wanted);
unsigned long long hash_of_calls();

int main(int argc, char** argv) {
  const char* const level = level_used(argc > 1 ? argv[1] : nullptr);
  if (!level) {
    std::printf("%s does not run on this processor\n", argc > 1 ? argv[1] : "no level");
    return 2;
  }
  std::printf("%s %016llx\n", level, hash_of_calls());
}
