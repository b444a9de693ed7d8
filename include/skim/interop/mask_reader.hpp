// SPDX-License-Identifier: Apache-2.0
/// \file A mask tensor, in which an engine says which cells of its cache each row may see, as runs of rows with slots,
/// positions and a mask rule, which is how `attention_args` says it. Allocates.
#pragma once

#include <skim/check.hpp>
#include <skim/math/mask.hpp>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

namespace skim { inline namespace v0_2 {

/// Rows of the mask, one after another, that are one sequence for `attention_args`: its last `rows` tokens are the rows' own.
/// A call has one `mask`: runs of equal `see` that follow each other may share one. Rows without tokens are the host's to
/// fill, with zeros.
struct mask_run {
  std::int64_t first_row = 0, rows = 0;
  std::int64_t tokens = 0;       ///< that some row sees, at least `rows`; 0: the rows see nothing
  std::int64_t first_cell = -1;  ///< slot i is cell first_cell + i; -1: cell `cells(run)[i]`
  skim::mask see;                ///< of positions
  bool positioned = false;       ///< slot i is at `positions(run)[i]`; else at i
  bool biased = false;           ///< all cells are slots, all are seen: the mask is to be added as a bias
};

/// Reads masks row by row. A row belongs to the run of the row before it if it sees what that one saw, and one cell more: its
/// own; less what a window of one width has left behind. Or if it sees exactly what that one saw: such rows look both ways.
/// So a causal chunk is one run, with or without a window, whatever the order of its cells and the holes between them, and
/// rows of different sequences are runs of their own; at worst every row is one. Whatever the mask, runs give each row
/// exactly the cells that it sees.
///
/// The mask does not say which of the cells that a run's first row sees is its own, nor how old those are that all
/// rows see; it does not matter to attention. Policies that go by age take the order of cells for it.
class mask_reader {
 public:
  /// Appends the runs of `mask` [rows, cells]: f32, f16 or bf16, 0 = seen, -inf = hidden. A mask with other numbers becomes
  /// biased runs, also where they are meant to hide, such as the lowest float: write -inf. `first_row`: what row 0 is called.
  /// Statuses: those of a view, bad_type; then nothing is appended.
  report read(const tensor_view<const void, 2>& mask, std::int64_t first_row = 0) {
    if (report r = detail::check_tensor(mask, "mask"); !r) return r;
    if (mask.type != element::f32 && mask.type != element::f16 && mask.type != element::bf16) {
      return fault(status::bad_type, "mask.type", to_string(mask.type), "f32, f16 or bf16");
    }
    if (mask.type == element::f32) read_words<std::uint32_t, 0xff800000u>(mask, first_row);
    if (mask.type == element::f16) read_words<std::uint16_t, 0xfc00u>(mask, first_row);
    if (mask.type == element::bf16) read_words<std::uint16_t, 0xff80u>(mask, first_row);
    return {};
  }

  /// Forgets all runs, keeps the memory.
  void clear() {
    runs_.clear();
    places_.clear();
    cells_.clear();
    positions_.clear();
  }

  const std::vector<mask_run>& runs() const { return runs_; }
  /// [tokens], where `first_cell` is -1; valid until the next `read`.
  const std::int32_t* cells(std::size_t run) const { return cells_.data() + places_[run].cells; }
  /// [tokens], where `positioned`.
  const std::int32_t* positions(std::size_t run) const { return positions_.data() + places_[run].positions; }

 private:
  struct place {
    std::size_t cells, positions;
  };
  static constexpr std::int32_t unseen = -1, stays = (std::numeric_limits<std::int32_t>::max)();

  template <class Word, Word hidden>
  void read_words(const tensor_view<const void, 2>& mask, std::int64_t first_row) {
    const std::int64_t rows = mask.extents[0], cells = mask.extents[1];
    const std::size_t before = runs_.size(), before_cells = cells_.size(), before_positions = positions_.size();
    const auto row = [&](std::int64_t t) { return static_cast<const Word*>(mask.at(t)); };
    plain_ = true;
    for (std::int64_t begin = 0; begin < rows && plain_;) {
      start<Word, hidden>(row(begin), cells);
      std::int64_t t = 1;
      while (plain_ && begin + t < rows && extend<Word, hidden>(row(begin + t), row(begin + t - 1), cells, t)) ++t;
      begin += finish(first_row + begin, t);
    }
    if (plain_) return;
    runs_.resize(before);
    places_.resize(before);
    cells_.resize(before_cells);
    positions_.resize(before_positions);
    for (std::int64_t begin = 0; begin < rows; begin += cells) {  // a sequence has no fewer tokens than rows
      mask_run run{first_row + begin, (std::min)(cells, rows - begin), cells, 0, skim::mask::full()};
      run.biased = true;
      append(run);
    }
  }

  template <class Word, Word hidden>
  bool sees(Word value) {
    constexpr Word sign = static_cast<Word>(Word{1} << (8 * sizeof(Word) - 1));
    if (static_cast<Word>(value & static_cast<Word>(~sign)) == 0) return true;  // 0 or -0
    plain_ &= value == hidden;
    return false;
  }

  template <class Word, Word hidden>
  void start(const Word* row, std::int64_t cells) {
    base_.clear();
    own_.assign(1, -1);
    leaves_.assign(static_cast<std::size_t>(cells), unseen);
    enters_.resize(static_cast<std::size_t>(cells));
    for (std::int64_t c = 0; c < cells; ++c) {
      if (!sees<Word, hidden>(row[c])) continue;
      base_.push_back(static_cast<std::int32_t>(c));
      leaves_[static_cast<std::size_t>(c)] = stays;
      enters_[static_cast<std::size_t>(c)] = 0;
    }
    base_seen_ = static_cast<std::int64_t>(base_.size());
    own_seen_ = window_ = last_left_ = 0;
    both_ways_ = false;
  }

  /// Whether row t of the run belongs to it; if so, takes it in.
  template <class Word, Word hidden>
  bool extend(const Word* row, const Word* before, std::int64_t cells, std::int64_t t) {
    appear_.clear();
    vanish_.clear();
    constexpr std::int64_t piece = 64;
    for (std::int64_t first = 0; first < cells; first += piece) {
      const std::int64_t end = (std::min)(first + piece, cells);
      if (std::memcmp(row + first, before + first, static_cast<std::size_t>(end - first) * sizeof(Word)) == 0) continue;
      for (std::int64_t c = first; c < end; ++c) {
        if (row[c] == before[c]) continue;
        const bool now = sees<Word, hidden>(row[c]), then = sees<Word, hidden>(before[c]);
        if (now != then) (now ? appear_ : vanish_).push_back(static_cast<std::int32_t>(c));
      }
      if (appear_.size() > 1 || !plain_) return false;
    }
    if (base_.empty()) return appear_.empty() && vanish_.empty();  // rows that see nothing
    if (appear_.empty() && vanish_.empty()) {
      const bool fits = (t == 1 || both_ways_) && t < static_cast<std::int64_t>(base_.size());
      both_ways_ |= fits;
      return fits;
    }
    return !both_ways_ && extend_causal(t);
  }

  bool extend_causal(std::int64_t t) {
    if (appear_.size() != 1 || leave(appear_[0]) != unseen) return false;  // none, several, or one that comes back
    std::int64_t window = window_, base_seen = base_seen_, own_seen = own_seen_ + 1;
    for (const std::int32_t c : vanish_) {
      const std::int64_t entered = enters_[static_cast<std::size_t>(c)];
      if (entered == 0) {
        --base_seen;
        continue;
      }
      --own_seen;
      if (window != 0 && window != t - entered) return false;
      window = t - entered;
    }
    const std::int64_t last_left = base_seen < base_seen_ ? t : last_left_;
    if (base_seen == 0) {
      // Row 0's own was the last to leave and said how wide the window is, through which no more were seen; row 1's is next.
      if (window == 0 && (last_left < t || static_cast<std::int64_t>(base_.size()) > t)) return false;
      if (window != 0 && (window != last_left || own_seen != window)) return false;
    } else if (window != 0) {
      return false;  // something old outlives a row's own: no window by position
    }
    window_ = window;
    base_seen_ = base_seen;
    own_seen_ = own_seen;
    last_left_ = last_left;
    for (const std::int32_t c : vanish_) leaves_[static_cast<std::size_t>(c)] = static_cast<std::int32_t>(t);
    leaves_[static_cast<std::size_t>(appear_[0])] = stays;
    enters_[static_cast<std::size_t>(appear_[0])] = static_cast<std::int32_t>(t);
    own_.push_back(appear_[0]);
    return true;
  }

  /// Appends the run and returns its rows.
  std::int64_t finish(std::int64_t first_row, std::int64_t rows) {
    mask_run run;
    run.first_row = first_row;
    run.rows = rows;
    slots_.clear();
    ages_.clear();
    if (base_.empty()) {
      append(run);
      return rows;
    }
    if (both_ways_) {
      run.see = skim::mask::full();
      slots_ = base_;
    } else {
      // The window's width, the first row's own among the cells that leave with it, and the others in order of leaving.
      const std::int32_t width = base_seen_ > 0 ? stays : static_cast<std::int32_t>(last_left_);
      own_[0] = -1;
      for (const std::int32_t c : base_) {
        if (leave(c) != width) continue;
        own_[0] = c;
        if (rows > 1 && c == own_[1] - 1) break;
      }
      for (const std::int32_t c : base_) {
        if (c != own_[0]) slots_.push_back(c);
      }
      const auto earlier = [this](std::int32_t a, std::int32_t b) { return leave(a) < leave(b); };
      if (!std::is_sorted(slots_.begin(), slots_.end(), earlier))
        std::stable_sort(slots_.begin(), slots_.end(), earlier);
      if (last_left_ > 0) set_positions(rows, width, run);
      slots_.insert(slots_.end(), own_.begin(), own_.end());
    }
    run.tokens = static_cast<std::int64_t>(slots_.size());
    const auto gap = [](std::int32_t a, std::int32_t b) { return b != a + 1; };
    if (std::adjacent_find(slots_.begin(), slots_.end(), gap) == slots_.end()) run.first_cell = slots_[0];
    append(run);
    return rows;
  }

  /// Positions that give the rows the sight that the mask gave them. Real ones are not in the mask, but the distance to the
  /// chunk of every cell that some row does not see is.
  void set_positions(std::int64_t rows, std::int32_t width, mask_run& run) {
    const std::int64_t staying = width == stays ? base_seen_ - 1 : 0;  // beside row 0's own
    const std::int64_t window = width == stays ? rows + staying : width, own = window - 1;
    run.see = skim::mask::window(window);
    run.positioned = true;
    std::int64_t left = staying;
    for (const std::int32_t c : slots_) {
      ages_.push_back(static_cast<std::int32_t>(leave(c) == stays ? own - left-- : own + leave(c) - window));
    }
    for (std::int64_t t = 0; t < rows; ++t) ages_.push_back(static_cast<std::int32_t>(own + t));
  }

  void append(const mask_run& run) {
    runs_.push_back(run);
    places_.push_back({cells_.size(), positions_.size()});
    if (run.first_cell < 0) cells_.insert(cells_.end(), slots_.begin(), slots_.end());
    if (run.positioned) positions_.insert(positions_.end(), ages_.begin(), ages_.end());
  }

  std::int32_t leave(std::int32_t c) const { return leaves_[static_cast<std::size_t>(c)]; }

  std::vector<mask_run> runs_;
  std::vector<place> places_;
  std::vector<std::int32_t> cells_, positions_;

  // Of the run that is being read.
  std::vector<std::int32_t> base_, own_;       // cells of row 0, ascending; the cell that came with each later row
  std::vector<std::int32_t> leaves_, enters_;  // [cells]: the first row that no longer sees it; the first that does
  std::vector<std::int32_t> appear_, vanish_, slots_, ages_;
  std::int64_t base_seen_ = 0, own_seen_ = 0;  // of either, those that the last row sees
  std::int64_t last_left_ = 0;                 // the last row at which one of row 0's cells left
  std::int64_t window_ = 0;                    // 0: not known
  bool both_ways_ = false, plain_ = true;
};

}}  // namespace skim::v0_2
