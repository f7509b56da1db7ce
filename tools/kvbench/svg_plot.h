// A report as an SVG picture: one bar a figure with its range, its ceiling and its budget.
#pragma once

#include <string>

#include "tools/kvbench/report.h"

namespace kvstore::bench {

// Figures of one unit share a panel and its scale. Fixed width, as high as it needs to be.
std::string RenderSvg(const Report& report, const std::string& subtitle);

}  // namespace kvstore::bench
