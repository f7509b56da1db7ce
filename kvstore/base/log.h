// The log of a program: one line an event, to stderr, as text or JSON.
//
//   Log(LogLevel::kInfo, "slab mapped", {{"tenant", tenant}, {"slab", slab}});
//   2026-11-22T10:00:00.123Z info slab mapped tenant=default slab=7
//   {"time":"2026-11-22T10:00:00.123Z","level":"info","event":"slab
//   mapped","tenant":"default","slab":"7"}
//
// State changes and failures only, never per page or token; no token ids, page bytes, salts or
// session tokens. Values come from clients: control characters are escaped, so that one event is
// one line. Libraries below `service` return statuses and do not log.
//
// Threads: thread-safe. ConfigureLog() once, before threads start; without it: info, text.
#pragma once

#include <concepts>
#include <initializer_list>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace kvstore {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

// "debug", "info", "warning", "error"; "text", "json". Errors: InvalidArgument naming the valid
// ones.
absl::StatusOr<LogLevel> ParseLogLevel(std::string_view name);
absl::StatusOr<LogFormat> ParseLogFormat(std::string_view name);
std::string_view LogLevelName(LogLevel level);
std::string_view LogFormatName(LogFormat format);

void ConfigureLog(LogLevel level, LogFormat format);
void SetLogLevel(LogLevel level);

struct LogField {
  std::string_view name;
  std::string value;

  LogField(std::string_view n, std::string_view v) : name(n), value(v) {}
  LogField(std::string_view n, const char* v) : name(n), value(v) {}
  LogField(std::string_view n, const std::string& v) : name(n), value(v) {}
  LogField(std::string_view n, const absl::Status& v) : name(n), value(v.ToString()) {}
  template <std::integral T>
  LogField(std::string_view n, T v) : name(n), value(std::to_string(v)) {}
};

void Log(LogLevel level, std::string_view event, std::initializer_list<LogField> fields = {});

// The line's variable part, without time and level. For tests.
std::string FormatLogLine(LogFormat format, std::string_view event,
                          std::initializer_list<LogField> fields);

}  // namespace kvstore
