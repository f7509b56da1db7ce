#include "tools/kvbench/redis_peer.h"

#include <hiredis/hiredis.h>

#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "tools/kvbench/stopwatch.h"

namespace kvstore::bench {
namespace {

struct FreeReply {
  void operator()(redisReply* reply) const { freeReplyObject(reply); }
};
using Reply = std::unique_ptr<redisReply, FreeReply>;

// A command of many arguments, which outlive it.
class Command {
 public:
  explicit Command(const char* name) { Add(name, std::strlen(name)); }
  void Add(const char* argument, size_t bytes) {
    arguments_.push_back(argument);
    sizes_.push_back(bytes);
  }
  Reply Run(redisContext* context) {
    return Reply(static_cast<redisReply*>(redisCommandArgv(
        context, static_cast<int>(arguments_.size()), arguments_.data(), sizes_.data())));
  }

 private:
  std::vector<const char*> arguments_;
  std::vector<size_t> sizes_;
};

std::vector<std::string> Keys(const std::string& prefix, size_t count) {
  std::vector<std::string> keys;
  for (size_t i = 0; i < count; ++i) keys.push_back(absl::StrCat(prefix, "/", i));
  return keys;
}

// The value of a line "name:value" in INFO's text.
std::string InfoValue(const std::string& text, const std::string& name) {
  const size_t at = text.find(name + ":");
  if (at == std::string::npos) return {};
  const size_t begin = at + name.size() + 1;
  return text.substr(begin, text.find('\r', begin) - begin);
}

}  // namespace

void RedisPeer::Free::operator()(redisContext* context) const { redisFree(context); }

absl::StatusOr<RedisPeer> RedisPeer::Connect(const std::string& socket_path) {
  RedisPeer peer(redisConnectUnix(socket_path.c_str()));
  if (peer.context_ == nullptr || peer.context_->err != 0) {
    return absl::UnavailableError(absl::StrCat(
        "redis at ", socket_path, ": ",
        peer.context_ == nullptr ? "no memory" : static_cast<const char*>(peer.context_->errstr)));
  }
  return peer;
}

absl::Status RedisPeer::Failure(const char* what) const {
  return absl::UnavailableError(
      absl::StrCat("redis ", what, ": ", static_cast<const char*>(context_->errstr)));
}

absl::Status RedisPeer::Set(const std::string& key_prefix, std::span<const std::byte> values,
                            size_t value_bytes) {
  const std::vector<std::string> keys = Keys(key_prefix, values.size() / value_bytes);
  Command command("MSET");
  for (size_t i = 0; i < keys.size(); ++i) {
    command.Add(keys[i].data(), keys[i].size());
    command.Add(reinterpret_cast<const char*>(values.data()) + i * value_bytes, value_bytes);
  }
  const Reply reply = command.Run(context_.get());
  if (reply == nullptr) return Failure("MSET");
  if (reply->type == REDIS_REPLY_ERROR) return absl::UnavailableError(reply->str);
  return absl::OkStatus();
}

absl::StatusOr<double> RedisPeer::Get(const std::string& key_prefix,
                                      std::span<const std::byte> expect, size_t value_bytes) {
  const std::vector<std::string> keys = Keys(key_prefix, expect.size() / value_bytes);
  Command command("MGET");
  for (const std::string& key : keys) command.Add(key.data(), key.size());
  const Stopwatch watch;
  const Reply reply = command.Run(context_.get());
  const double seconds = watch.Seconds();
  if (reply == nullptr) return Failure("MGET");
  if (reply->type != REDIS_REPLY_ARRAY || reply->elements != keys.size()) {
    return absl::DataLossError("redis MGET: not as many values as keys");
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    const redisReply& value = *reply->element[i];
    if (value.type != REDIS_REPLY_STRING || value.len != value_bytes ||
        std::memcmp(value.str, expect.data() + i * value_bytes, value_bytes) != 0) {
      return absl::DataLossError(absl::StrCat("redis MGET: ", keys[i], " is not what was set"));
    }
  }
  return seconds;
}

absl::Status RedisPeer::FlushAll() {
  const Reply reply = Command("FLUSHALL").Run(context_.get());
  return reply == nullptr ? Failure("FLUSHALL") : absl::OkStatus();
}

absl::StatusOr<double> RedisPeer::ServerCpuSeconds() {
  Command command("INFO");
  command.Add("cpu", 3);
  const Reply reply = command.Run(context_.get());
  if (reply == nullptr || reply->str == nullptr) return Failure("INFO");
  const std::string text(reply->str, reply->len);
  return std::strtod(InfoValue(text, "used_cpu_sys").c_str(), nullptr) +
         std::strtod(InfoValue(text, "used_cpu_user").c_str(), nullptr);
}

absl::StatusOr<std::string> RedisPeer::Version() {
  Command command("INFO");
  command.Add("server", 6);
  const Reply reply = command.Run(context_.get());
  if (reply == nullptr || reply->str == nullptr) return Failure("INFO");
  return InfoValue(std::string(reply->str, reply->len), "redis_version");
}

}  // namespace kvstore::bench
