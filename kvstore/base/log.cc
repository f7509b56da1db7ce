#include "kvstore/base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdio>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kvstore/base/text.h"

namespace kvstore {
namespace {

constexpr struct {
  LogLevel level;
  std::string_view name;
  spdlog::level::level_enum spdlog_level;
} kLevels[] = {{LogLevel::kDebug, "debug", spdlog::level::debug},
               {LogLevel::kInfo, "info", spdlog::level::info},
               {LogLevel::kWarning, "warning", spdlog::level::warn},
               {LogLevel::kError, "error", spdlog::level::err}};

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  return kLevels[static_cast<size_t>(level)].spdlog_level;
}

std::atomic<LogFormat> format_now{LogFormat::kText};

// Never destroyed: threads may log until the process is gone.
spdlog::logger& Logger() {
  static spdlog::logger* logger = [] {
    auto* made = new spdlog::logger("kvstore", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %l %v", spdlog::pattern_time_type::utc);
    made->set_level(spdlog::level::info);
    made->flush_on(spdlog::level::trace);
    return made;
  }();
  return *logger;
}

// JSON string rules, which also serve as the text escape.
void AppendEscaped(std::string* out, std::string_view text) {
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(static_cast<char>(c));
    } else if (c < 0x20 || c == 0x7f) {
      char buffer[8];
      std::snprintf(buffer, sizeof buffer, "\\u%04x", c);
      out->append(buffer);
    } else {
      out->push_back(static_cast<char>(c));
    }
  }
}

void AppendTextValue(std::string* out, std::string_view value) {
  const bool is_plain = !value.empty() && value.find_first_of(" \t=\"") == std::string_view::npos;
  if (!is_plain) out->push_back('"');
  AppendEscaped(out, value);
  if (!is_plain) out->push_back('"');
}

}  // namespace

absl::StatusOr<LogLevel> ParseLogLevel(std::string_view name) {
  for (const auto& row : kLevels) {
    if (row.name == name) return row.level;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("'", AbslView(name), "' is not a level; valid: debug, info, warning, error"));
}

absl::StatusOr<LogFormat> ParseLogFormat(std::string_view name) {
  if (name == "text") return LogFormat::kText;
  if (name == "json") return LogFormat::kJson;
  return absl::InvalidArgumentError(
      absl::StrCat("'", AbslView(name), "' is not a log format; valid: text, json"));
}

std::string_view LogLevelName(LogLevel level) { return kLevels[static_cast<size_t>(level)].name; }
std::string_view LogFormatName(LogFormat format) {
  return format == LogFormat::kText ? "text" : "json";
}

void ConfigureLog(LogLevel level, LogFormat format) {
  format_now.store(format, std::memory_order_relaxed);
  Logger().set_pattern(format == LogFormat::kText
                           ? "%Y-%m-%dT%H:%M:%S.%eZ %l %v"
                           : R"({"time":"%Y-%m-%dT%H:%M:%S.%eZ","level":"%l",%v})",
                       spdlog::pattern_time_type::utc);
  SetLogLevel(level);
}

void SetLogLevel(LogLevel level) { Logger().set_level(ToSpdlog(level)); }

std::string FormatLogLine(LogFormat format, std::string_view event,
                          std::initializer_list<LogField> fields) {
  std::string line;
  if (format == LogFormat::kText) {
    AppendEscaped(&line, event);
    for (const LogField& field : fields) {
      line.push_back(' ');
      line.append(field.name);
      line.push_back('=');
      AppendTextValue(&line, field.value);
    }
    return line;
  }
  line.append("\"event\":\"");
  AppendEscaped(&line, event);
  line.push_back('"');
  for (const LogField& field : fields) {
    line.append(",\"").append(field.name).append("\":\"");
    AppendEscaped(&line, field.value);
    line.push_back('"');
  }
  return line;
}

void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields) {
  spdlog::logger& logger = Logger();
  if (!logger.should_log(ToSpdlog(level))) return;
  logger.log(ToSpdlog(level), spdlog::string_view_t("{}"),
             FormatLogLine(format_now.load(std::memory_order_relaxed), event, fields));
}

}  // namespace kvstore
