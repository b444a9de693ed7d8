// SPDX-License-Identifier: Apache-2.0
// Masks of every kind that engines build, read as runs; what the runs say is compared cell by cell with the mask.
#include <skim/interop/mask_reader.hpp>
#include <skim/math/random.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

namespace {

using skim::element;

/// A mask to be written down: what each row sees.
class seen_cells {
 public:
  seen_cells(std::int64_t rows, std::int64_t cells)
      : rows_(rows), cells_(cells), seen_(static_cast<std::size_t>(rows * cells)) {}

  std::int64_t rows() const { return rows_; }
  std::int64_t cells() const { return cells_; }
  bool at(std::int64_t t, std::int64_t c) const { return seen_[static_cast<std::size_t>(t * cells_ + c)] != 0; }
  void set(std::int64_t t, std::int64_t c, bool sees = true) { seen_[static_cast<std::size_t>(t * cells_ + c)] = sees; }

 private:
  std::int64_t rows_, cells_;
  std::vector<char> seen_;
};

/// The same as a tensor, its rows further apart than they are long.
struct mask_tensor {
  std::vector<char> bytes;
  skim::tensor_view<const void, 2> view;

  explicit mask_tensor(const seen_cells& seen, element type = element::f16, std::int64_t gap = 3) {
    const std::int64_t stride = seen.cells() + gap;
    bytes.assign(static_cast<std::size_t>(skim::bytes_of(type, seen.rows() * stride + 1)), '\x5a');
    for (std::int64_t t = 0; t < seen.rows(); ++t) {
      for (std::int64_t c = 0; c < seen.cells(); ++c) {
        skim::store_element(bytes.data(), type, t * stride + c, seen.at(t, c) ? 0.0f : -INFINITY);
      }
    }
    view = {bytes.data(), {seen.rows(), seen.cells()}, {stride, 1}, type};
  }
};

/// What is wrong with the runs of a mask whose row 0 was called `first_row`; nothing if they say what it says.
std::string complaint(const skim::mask_reader& reader, const seen_cells& seen, std::int64_t first_row = 0) {
  std::int64_t row = first_row;
  for (std::size_t r = 0; r < reader.runs().size(); ++r) {
    const skim::mask_run& run = reader.runs()[r];
    const std::string name = "run " + std::to_string(r);
    if (run.biased) return name + " is biased";
    if (run.first_row != row || run.rows < 1) return name + " leaves rows out";
    if (run.tokens != 0 && run.tokens < run.rows) return name + " has fewer tokens than rows";
    row += run.rows;
    std::vector<std::int64_t> slot_of(static_cast<std::size_t>(seen.cells()), -1);
    for (std::int64_t i = 0; i < run.tokens; ++i) {
      const std::int64_t c = run.first_cell >= 0 ? run.first_cell + i : reader.cells(r)[i];
      if (c < 0 || c >= seen.cells() || slot_of[static_cast<std::size_t>(c)] >= 0) return name + " has bad cells";
      slot_of[static_cast<std::size_t>(c)] = i;
    }
    const auto position = [&](std::int64_t slot) { return run.positioned ? reader.positions(r)[slot] : slot; };
    for (std::int64_t t = 0; t < run.rows; ++t) {
      for (std::int64_t c = 0; c < seen.cells(); ++c) {
        const std::int64_t slot = slot_of[static_cast<std::size_t>(c)];
        const bool sees =
            slot >= 0 && run.see.visible(position(run.tokens - run.rows + t), position(slot)) && position(slot) >= 0;
        if (sees != seen.at(run.first_row - first_row + t, c)) {
          return name + ", row " + std::to_string(t) + ", cell " + std::to_string(c) + (sees ? ": seen" : ": not seen");
        }
      }
    }
  }
  return row == first_row + seen.rows() ? "" : "rows are missing at the end";
}

/// Reads a mask of each type; returns the runs of the last.
std::vector<skim::mask_run> runs_of(const seen_cells& seen) {
  skim::mask_reader reader;
  for (const element type : {element::f32, element::bf16, element::f16}) {
    reader.clear();
    EXPECT_TRUE(reader.read(mask_tensor(seen, type).view, 7).ok());
    EXPECT_EQ(complaint(reader, seen, 7), "") << to_string(type);
  }
  return reader.runs();
}

/// A cache's cells: whose they are and at which position; sequence -1 = empty.
struct cell {
  int sequence = -1;
  std::int64_t position = 0;
};
struct token {
  int sequence;
  std::int64_t position;
};

/// As llama.cpp fills its mask: a row sees the cells of its sequence that `see` lets it see.
seen_cells mask_of(const std::vector<cell>& cells, const std::vector<token>& rows,
                   skim::mask see = skim::mask::causal()) {
  seen_cells seen(static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(cells.size()));
  for (std::size_t t = 0; t < rows.size(); ++t) {
    for (std::size_t c = 0; c < cells.size(); ++c) {
      const bool same = cells[c].sequence == rows[t].sequence;
      seen.set(static_cast<std::int64_t>(t), static_cast<std::int64_t>(c),
               same && see.visible(rows[t].position, cells[c].position));
    }
  }
  return seen;
}

/// `count` tokens of a sequence from a position on, appended to cells and, `as_rows`, to the rows.
void put(int sequence, std::int64_t first, std::int64_t count, std::vector<cell>& cells, std::vector<token>* rows) {
  for (std::int64_t i = 0; i < count; ++i) {
    cells.push_back({sequence, first + i});
    if (rows) rows->push_back({sequence, first + i});
  }
}

TEST(MaskReader, AChunkBehindACacheIsOneContiguousRun) {
  std::vector<cell> cells;
  std::vector<token> rows;
  put(0, 0, 300, cells, nullptr);
  put(0, 300, 70, cells, &rows);
  cells.resize(512);  // padded
  const auto runs = runs_of(mask_of(cells, rows));
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].rows, 70);
  EXPECT_EQ(runs[0].tokens, 370);
  EXPECT_EQ(runs[0].first_cell, 0);
  EXPECT_FALSE(runs[0].positioned);
  EXPECT_EQ(runs[0].see.right, 0);
}

TEST(MaskReader, CellsInAnyOrderAreATable) {
  std::vector<cell> cells;
  std::vector<token> rows;
  put(0, 0, 100, cells, nullptr);
  put(0, 100, 30, cells, &rows);
  cells.resize(160);
  for (std::uint64_t i = cells.size() - 1; i > 0; --i) std::swap(cells[i], cells[skim::draw(3, i) % (i + 1)]);
  const auto runs = runs_of(mask_of(cells, rows));
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].tokens, 130);
  EXPECT_EQ(runs[0].first_cell, -1);
}

TEST(MaskReader, WindowsAreFoundWhateverTheirWidth) {
  for (const std::int64_t width : {1, 2, 5, 29, 30, 31, 60, 129, 130, 131, 500}) {
    std::vector<cell> cells;
    std::vector<token> rows;
    put(0, 0, 100, cells, nullptr);
    put(0, 100, 30, cells, &rows);
    const auto runs = runs_of(mask_of(cells, rows, skim::mask::window(width)));
    ASSERT_EQ(runs.size(), 1u) << width;
    EXPECT_EQ(runs[0].positioned, width < 130) << width;
    if (width < 30) {
      EXPECT_EQ(runs[0].see.left, width - 1);
    }
  }
}

TEST(MaskReader, WindowsOverRecycledCells) {
  std::vector<cell> cells(64);
  std::vector<token> rows;
  for (std::int64_t p = 0; p < 100; ++p) cells[static_cast<std::size_t>(p % 64)] = {0, p};  // a ring, written over
  for (std::int64_t p = 80; p < 100; ++p) rows.push_back({0, p});
  EXPECT_EQ(runs_of(mask_of(cells, rows, skim::mask::window(40))).size(), 1u);
}

TEST(MaskReader, SequencesAreRunsOfTheirOwn) {
  std::vector<cell> cells;
  std::vector<token> rows;
  put(0, 0, 50, cells, nullptr);
  put(1, 0, 20, cells, nullptr);
  put(0, 50, 9, cells, &rows);
  put(1, 20, 12, cells, &rows);
  EXPECT_EQ(runs_of(mask_of(cells, rows)).size(), 2u);

  std::vector<token> mixed;  // row by row in turn: a run each, the last three rows being of one sequence
  for (std::size_t i = 0; i < 9; ++i) {
    mixed.push_back(rows[i]);
    mixed.push_back(rows[9 + i]);
  }
  mixed.insert(mixed.end(), rows.end() - 3, rows.end());
  EXPECT_EQ(runs_of(mask_of(cells, mixed)).size(), 18u);

  std::vector<token> generated;  // one token each: nothing follows from one row about the next
  put(0, 59, 1, cells, &generated);
  put(1, 32, 1, cells, &generated);
  put(2, 0, 1, cells, &generated);
  EXPECT_EQ(runs_of(mask_of(cells, generated)).size(), 3u);
}

TEST(MaskReader, RowsThatLookBothWays) {
  std::vector<cell> cells;
  std::vector<token> rows;
  put(0, 0, 40, cells, &rows);
  auto runs = runs_of(mask_of(cells, rows, skim::mask::full()));
  ASSERT_EQ(runs.size(), 1u);
  EXPECT_EQ(runs[0].see.right, skim::mask::unbounded);

  seen_cells image(20, 30);  // text, an image whose rows see all of it, text
  for (std::int64_t t = 0; t < 20; ++t) {
    for (std::int64_t c = 0; c <= 10 + (t >= 5 && t < 12 ? 11 : t); ++c) image.set(t, c);
  }
  EXPECT_LE(runs_of(image).size(), 3u);

  seen_cells few(9, 12);  // more rows than cells that they see
  for (std::int64_t t = 0; t < 9; ++t) {
    for (const std::int64_t c : {3, 4, 8}) few.set(t, c);
  }
  EXPECT_EQ(runs_of(few).size(), 3u);
}

TEST(MaskReader, RowsThatSeeNothing) {
  seen_cells seen(6, 8);
  seen.set(2, 3);
  const auto runs = runs_of(seen);
  ASSERT_EQ(runs.size(), 3u);
  EXPECT_EQ(runs[0].tokens, 0);
  EXPECT_EQ(runs[0].rows, 2);
  EXPECT_EQ(runs[2].rows, 3);
  EXPECT_EQ(runs_of(seen_cells(4, 0)).size(), 1u);
  EXPECT_TRUE(runs_of(seen_cells(0, 5)).empty());
}

TEST(MaskReader, OtherNumbersAreABias) {
  seen_cells seen(10, 4);
  for (std::int64_t t = 0; t < 10; ++t) seen.set(t, t % 4);
  for (const float odd : {-0.5f, 1e-7f, -65504.0f, INFINITY, std::nanf("")}) {
    mask_tensor tensor(seen);
    skim::store_element(tensor.bytes.data(), element::f16, 9 * 7 + 2, odd);
    skim::mask_reader reader;
    ASSERT_TRUE(reader.read(mask_tensor(seen).view).ok());
    const std::size_t before = reader.runs().size();
    ASSERT_TRUE(reader.read(tensor.view, 10).ok());
    ASSERT_EQ(reader.runs().size(), before + 3) << odd;  // 10 rows over 4 cells
    for (std::size_t r = before; r < reader.runs().size(); ++r) {
      EXPECT_TRUE(reader.runs()[r].biased);
      EXPECT_EQ(reader.runs()[r].tokens, 4);
      EXPECT_EQ(reader.runs()[r].first_cell, 0);
      EXPECT_EQ(reader.runs()[r].rows, r + 1 < reader.runs().size() ? 4 : 2);
    }
  }
  mask_tensor negative(seen);
  for (std::int64_t t = 0; t < 10; ++t) skim::store_element(negative.bytes.data(), element::f16, t * 7 + t % 4, -0.0f);
  skim::mask_reader reader;
  ASSERT_TRUE(reader.read(negative.view).ok());
  EXPECT_EQ(complaint(reader, seen), "") << "-0 is 0";
}

TEST(MaskReader, RefusesWhatItCannotRead) {
  const mask_tensor tensor(seen_cells(4, 6));
  skim::mask_reader reader;
  skim::tensor_view<const void, 2> mask = tensor.view;
  mask.type = element::none;
  EXPECT_EQ(reader.read(mask).code, skim::status::bad_type);
  mask = tensor.view;
  mask.strides[1] = 2;
  EXPECT_EQ(reader.read(mask).code, skim::status::bad_stride);
  mask = tensor.view;
  mask.data = nullptr;
  EXPECT_EQ(reader.read(mask).code, skim::status::null_pointer);
  mask = tensor.view;
  mask.extents[0] = -1;
  EXPECT_EQ(reader.read(mask).code, skim::status::bad_extent);
  EXPECT_TRUE(reader.runs().empty());
}

/// Caches in every state, and masks that follow no rule, small enough for millions of rows.
TEST(MaskReader, RandomMasksAreSaidExactly) {
  constexpr std::uint64_t masks = 300'000 / SKIM_TEST_STRIDE;
  skim::mask_reader reader;
  std::int64_t rows_read = 0;
  for (std::uint64_t m = 0; m < masks; ++m) {
    std::uint64_t step = 0;
    const auto draw = [&](std::uint64_t below) { return static_cast<std::int64_t>(skim::draw(m, step++) % below); };
    std::vector<cell> cells(static_cast<std::size_t>(1 + draw(24)));
    std::vector<token> rows;
    for (std::size_t c = 0; c < cells.size(); ++c) {
      if (draw(5) > 0)
        cells[c] = {static_cast<int>(draw(2) * draw(3)), static_cast<std::int64_t>(c) + draw(2) * draw(9)};
    }
    const std::int64_t count = 1 + draw(14), first = draw(20);
    const bool one_sequence = draw(2) == 0;
    for (std::int64_t t = 0; t < count; ++t) rows.push_back({one_sequence ? 0 : static_cast<int>(draw(3)), first + t});
    const skim::mask rules[] = {skim::mask::causal(), skim::mask::causal(), skim::mask::window(1 + draw(20)),
                                skim::mask::full()};
    seen_cells seen = mask_of(cells, rows, rules[draw(4)]);
    for (std::int64_t flips = draw(3) == 0 ? draw(6) : 0; flips > 0; --flips) {
      const std::int64_t t = draw(static_cast<std::uint64_t>(seen.rows())),
                         c = draw(static_cast<std::uint64_t>(seen.cells()));
      seen.set(t, c, !seen.at(t, c));
    }
    if (draw(8) == 0) {
      for (std::int64_t t = 0; t < seen.rows(); ++t) {
        for (std::int64_t c = 0; c < seen.cells(); ++c) seen.set(t, c, draw(2) == 0);
      }
    }
    reader.clear();
    ASSERT_TRUE(reader.read(mask_tensor(seen).view).ok());
    const std::string wrong = complaint(reader, seen);
    ASSERT_EQ(wrong, "") << "mask " << m;
    rows_read += seen.rows();
  }
  EXPECT_GT(rows_read, static_cast<std::int64_t>(7 * masks));
}

}  // namespace
