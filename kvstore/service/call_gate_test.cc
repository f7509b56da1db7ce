#include "kvstore/service/call_gate.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvstore::service {
namespace {

bool IsFull(const absl::StatusOr<CallGate::Ticket>& ticket) {
  return absl::IsResourceExhausted(ticket.status());
}

TEST(CallGate, OneCallerCannotTakeEverything) {
  CallGate gate({.calls = 4, .calls_per_caller = 2, .bytes = 1000});
  absl::StatusOr<CallGate::Ticket> a = gate.Admit(1, 0), b = gate.Admit(1, 0);
  EXPECT_TRUE(IsFull(gate.Admit(1, 0)));
  EXPECT_TRUE(gate.Admit(2, 0).ok());
  EXPECT_EQ(gate.counters().refused_calls, 1u);
}

TEST(CallGate, AllCallersTogetherAreBounded) {
  CallGate gate({.calls = 2, .calls_per_caller = 2, .bytes = 1000});
  absl::StatusOr<CallGate::Ticket> a = gate.Admit(1, 0), b = gate.Admit(2, 0);
  EXPECT_TRUE(IsFull(gate.Admit(3, 0)));
}

TEST(CallGate, BytesAreBoundedAlsoWhenACallGrows) {
  CallGate gate({.calls = 9, .calls_per_caller = 9, .bytes = 1000});
  absl::StatusOr<CallGate::Ticket> a = gate.Admit(1, 600);
  EXPECT_TRUE(IsFull(gate.Admit(2, 401)));
  EXPECT_TRUE(absl::IsResourceExhausted(a->Grow(401)));
  EXPECT_TRUE(a->Grow(400).ok());
  EXPECT_EQ(gate.counters().bytes, 1000u);
}

TEST(CallGate, WhatATicketHeldComesBackOnce) {
  CallGate gate({.calls = 1, .calls_per_caller = 1, .bytes = 1000});
  {
    absl::StatusOr<CallGate::Ticket> a = gate.Admit(1, 500);
    CallGate::Ticket moved = *std::move(a);
    EXPECT_TRUE(IsFull(gate.Admit(1, 0)));
    moved.Release();
    moved.Release();
  }
  EXPECT_EQ(gate.counters().calls, 0u);
  EXPECT_EQ(gate.counters().bytes, 0u);
  EXPECT_TRUE(gate.Admit(1, 1000).ok());
}

}  // namespace
}  // namespace kvstore::service
