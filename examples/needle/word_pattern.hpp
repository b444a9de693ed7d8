// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace needle {

/// A pattern of `tokenizer.json` for PCRE2. It is meant for Oniguruma, which reads much of the notation in other ways: taken is
/// what both read alike, and `\s`, which is spelt out, as PCRE2's has one character more. Throws `error` on anything else.
std::string pcre2_pattern(std::string_view oniguruma);

}  // namespace needle
