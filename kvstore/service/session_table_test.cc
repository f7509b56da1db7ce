#include "kvstore/service/session_table.h"

#include <gtest/gtest.h>

#include <string_view>

namespace kvstore::service {
namespace {

std::string_view Text(const SessionToken& token) {
  return {reinterpret_cast<const char*>(token.data()), token.size()};
}

TEST(SessionTable, ATokenNamesItsSessionForItsUidOnly) {
  SessionTable table;
  absl::StatusOr<SessionToken> token = table.Add(
      {.id = SessionId(7), .tenant = "t", .uid = 1000, .access = MemoryAccess::kReadWrite});
  ASSERT_TRUE(token.ok());
  EXPECT_EQ(table.Find(Text(*token), 1000)->id, SessionId(7));
  EXPECT_EQ(table.Find(Text(*token), 1001).status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(table.Find(Text(*token), std::nullopt).status().code(),
            absl::StatusCode::kUnauthenticated);
}

TEST(SessionTable, RemovedAndUnknownTokensLookTheSame) {
  SessionTable table;
  const SessionToken token = *table.Add({.id = SessionId(7), .tenant = "t", .uid = 0});
  table.Remove(token);
  EXPECT_EQ(table.Find(Text(token), 0).status(), table.Find(std::string(16, 'x'), 0).status());
  EXPECT_EQ(table.size(), 0u);
}

TEST(SessionTable, TokensDiffer) {
  SessionTable table;
  EXPECT_NE(*table.Add({.id = SessionId(1), .tenant = "t"}),
            *table.Add({.id = SessionId(1), .tenant = "t"}));
}

TEST(SessionTable, ATokenHas16Bytes) {
  SessionTable table;
  EXPECT_EQ(table.Find("short", 0).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvstore::service
