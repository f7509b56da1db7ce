#include "engine_adapter/llama_cpu/cpu_executor.h"

namespace kvstore::engine {
namespace {

// Rows of activations that a piece keeps in the second-level cache: 192 rows x 256 columns of
// float32 are 192 KiB.
constexpr int64_t kPieceRows = 192;
constexpr int64_t kPiecePanels = 8;  // reuse a block of activations well enough

}  // namespace

void CpuExecutor::Plan(WorkSpace& space, int64_t head_dim) {
  const int64_t attention = kernels::AttentionScratchFloats(head_dim);
  scratch_floats_ = RoundUp(std::max(attention, kernels::kGemmScratchFloats), 1024);
  space.AddFloats(scratch_, pool_.num_threads() * scratch_floats_);
}

void CpuExecutor::Multiply(RowRange rows, const Activation& a, const PackedMatrix& matrix,
                           const Activation& c) {
  Product product{.a = a, .matrix = &matrix, .c = c, .rows = rows};
  Multiply({&product, 1});
}

// Many rows: squares of rows and panels. Few rows: the weights are read once, in a few long pieces a
// thread over all products together.
int64_t CpuExecutor::CutIntoPieces(std::span<Product> products) const {
  int64_t all_panels = 0;
  for (const Product& product : products) all_panels += kernels::PanelsOf(product.matrix->n);
  const int64_t long_piece = RoundUp(CeilDiv(all_panels, int64_t{num_threads()} * 4), 4);
  int64_t pieces = 0;
  for (Product& product : products) {
    const int64_t rows = product.rows.size();
    const int64_t row_pieces = CeilDiv(rows, kPieceRows);
    product.piece_rows = rows <= 1 ? 1 : RoundUp(CeilDiv(rows, row_pieces), kNarrowRows);
    product.piece_panels = rows > kNarrowRows ? kPiecePanels : long_piece;
    product.panel_pieces = CeilDiv(kernels::PanelsOf(product.matrix->n), product.piece_panels);
    product.first_piece = pieces;
    pieces += row_pieces * product.panel_pieces;
  }
  return pieces;
}

void CpuExecutor::Multiply(std::span<Product> products) {
  pool_.Run(CutIntoPieces(products), [&](int64_t index, int thread) {
    const auto behind = std::upper_bound(
        products.begin(), products.end(), index,
        [](int64_t piece, const Product& product) { return piece < product.first_piece; });
    const Product& p = *(behind - 1);
    const int64_t piece = index - p.first_piece;
    const int64_t row = p.rows.begin + piece / p.panel_pieces * p.piece_rows;
    const int64_t panel = piece % p.panel_pieces * p.piece_panels;
    const kernels::GemmBlock block{
        row, std::min(row + p.piece_rows, p.rows.end), panel,
        std::min(panel + p.piece_panels, kernels::PanelsOf(p.matrix->n))};
    if (block.row_begin >= block.row_end) return;
    const PackedMatrix& matrix = *p.matrix;
    const kernels::GemmArgs args{.a = p.a.data,
                                 .a_stride = p.a.stride,
                                 .panels = matrix.panels.data(),
                                 .weight_type = matrix.type,
                                 .bias = matrix.bias.empty() ? nullptr : matrix.bias.data(),
                                 .c = p.c.data,
                                 .c_stride = p.c.stride,
                                 .n = matrix.n,
                                 .k = matrix.k};
    kernels_.gemm(args, block, scratch(thread));
  });
}

}  // namespace kvstore::engine
