#include "tools/kvbench/svg_plot.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace kvstore::bench {
namespace {

// Pixels.
constexpr double kWidth = 1250, kMargin = 20, kBarsLeft = 300, kBarsRight = 690, kTextLeft = 700;
constexpr double kRowHeight = 26, kBarHeight = 14, kTitleHeight = 64, kPanelGap = 46;

constexpr char kStyle[] =
    "<style>text{font:12px system-ui,sans-serif;fill:#222}.t{font-size:18px;font-weight:600}"
    ".u{font-weight:600}.s{fill:#666}.bar{fill:#4878a8}.miss{fill:#b8523a}.peer{fill:#a0a0a0}"
    ".range{stroke:#1c3450;stroke-width:1.5}.ceiling{stroke:#111;stroke-width:2}"
    ".budget{stroke:#2a8a3a;stroke-width:2;stroke-dasharray:3 2}.axis{stroke:#ddd}</style>\n";

std::string Escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

// Where the budget lies on the figure's own scale.
std::optional<double> BudgetValue(const Result& result) {
  if (!result.budget) return std::nullopt;
  if (result.budget->on == Budget::On::kValue) return result.budget->limit;
  if (!result.ceiling || result.budget->limit <= 0) return std::nullopt;
  return result.better == Better::kHigher ? result.ceiling->value * result.budget->limit
                                          : result.ceiling->value / result.budget->limit;
}

class Canvas {
 public:
  void Text(double x, double y, std::string_view style, std::string_view text) {
    absl::StrAppendFormat(&body_, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%s</text>\n", x, y,
                          std::string(style), Escape(text));
  }
  void Line(double x1, double y1, double x2, double y2, std::string_view style) {
    absl::StrAppendFormat(&body_,
                          "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>\n",
                          x1, y1, x2, y2, std::string(style));
  }
  void Bar(double x, double y, double width, std::string_view style, std::string_view title) {
    absl::StrAppendFormat(&body_,
                          "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
                          "class=\"%s\"><title>%s</title></rect>\n",
                          x, y, std::max(width, 0.5), kBarHeight, std::string(style),
                          Escape(title));
  }
  std::string Finish(double height) const {
    return absl::StrFormat(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
        "viewBox=\"0 0 %.0f %.0f\">\n%s<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
        "%s</svg>\n",
        kWidth, height, kWidth, height, kStyle, body_);
  }

 private:
  std::string body_;
};

// Figures of one unit, drawn to one scale.
class Panel {
 public:
  explicit Panel(std::string unit) : unit_(std::move(unit)) {}
  const std::string& unit() const { return unit_; }
  void Add(const Result* result) { results_.push_back(result); }

  // Returns where the next panel begins.
  double Draw(Canvas& canvas, double y, bool is_judged) const {
    const double scale = (kBarsRight - kBarsLeft) / Largest();
    canvas.Text(kMargin, y, "u", unit_);
    y += 10;
    const double bottom = y + kRowHeight * static_cast<double>(results_.size());
    for (int i = 0; i <= 4; ++i) {
      const double x = kBarsLeft + (kBarsRight - kBarsLeft) * i / 4;
      canvas.Line(x, y, x, bottom, "axis");
      canvas.Text(x - 8, bottom + 14, "s", FormatNumber(Largest() * i / 4));
    }
    for (const Result* result : results_) {
      DrawRow(canvas, *result, y, scale, is_judged);
      y += kRowHeight;
    }
    return y + kPanelGap;
  }

 private:
  double Largest() const {
    double largest = 0;
    for (const Result* result : results_) {
      largest = std::max({largest, result->median, result->max,
                          result->ceiling ? result->ceiling->value : 0,
                          BudgetValue(*result).value_or(0)});
    }
    return largest > 0 ? largest : 1;
  }

  static bool IsPeer(const Result& result) {
    return std::ranges::count(result.name, '/') > 2;  // suite/operation/size/peer
  }

  static void DrawRow(Canvas& canvas, const Result& result, double y, double scale,
                      bool is_judged) {
    const double middle = y + kRowHeight / 2, top = middle - kBarHeight / 2;
    const auto x_of = [scale](double value) { return kBarsLeft + value * scale; };
    const bool is_missed = is_judged && !result.IsMet().value_or(true);
    const char* style = is_missed ? "miss" : IsPeer(result) ? "peer" : "bar";
    canvas.Text(kMargin, middle + 4, "", result.name);
    std::string title = absl::StrCat(result.name, ": ", FormatNumber(result.median), " ",
                                     result.unit, ", n = ", result.n);
    std::string text = FormatNumber(result.median);
    if (result.ceiling) {
      absl::StrAppendFormat(&text, "  (ratio %.2f to %s)", *result.Ratio(), result.ceiling->name);
      absl::StrAppend(&title, "; ceiling ", FormatNumber(result.ceiling->value), ", ",
                      result.ceiling->name);
    }
    canvas.Bar(kBarsLeft, top, result.median * scale, style, title);
    if (result.n > 1) canvas.Line(x_of(result.min), middle, x_of(result.max), middle, "range");
    if (result.ceiling) {
      const double x = x_of(result.ceiling->value);
      canvas.Line(x, top - 4, x, top + kBarHeight + 4, "ceiling");
    }
    if (const std::optional<double> budget = BudgetValue(result)) {
      canvas.Line(x_of(*budget), top - 4, x_of(*budget), top + kBarHeight + 4, "budget");
    }
    canvas.Text(kTextLeft, middle + 4, "s", text);
  }

  std::string unit_;
  std::vector<const Result*> results_;
};

}  // namespace

std::string RenderSvg(const Report& report, const std::string& subtitle) {
  std::vector<Panel> panels;
  for (const Result& result : report.results()) {
    auto panel = std::ranges::find(panels, result.unit, &Panel::unit);
    if (panel == panels.end()) panel = panels.insert(panels.end(), Panel(result.unit));
    panel->Add(&result);
  }
  Canvas canvas;
  canvas.Text(kMargin, 28, "t", absl::StrCat("kvbench ", report.suite()));
  canvas.Text(kMargin, 46, "s", subtitle);
  canvas.Text(kMargin, 62, "s",
              "bar: median, line: range, black: ceiling of this machine, dashed green: budget, "
              "red: budget missed");
  double y = kTitleHeight + 28;
  for (const Panel& panel : panels) y = panel.Draw(canvas, y, !report.is_quick());
  return canvas.Finish(y);
}

}  // namespace kvstore::bench
