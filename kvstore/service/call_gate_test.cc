#include "kvstore/service/call_gate.h"

#include <gtest/gtest.h>

#include <vector>

namespace kvstore::service {
namespace {

bool IsFull(const absl::StatusOr<CallGate::Ticket>& ticket) {
  return absl::IsResourceExhausted(ticket.status());
}

TEST(CallGate, OneTenantCannotTakeEverything) {
  CallGate gate({.calls = 4, .calls_per_tenant = 2, .bytes = 1000});
  absl::StatusOr<CallGate::Ticket> a = gate.Admit("a", 0), b = gate.Admit("a", 0);
  EXPECT_TRUE(IsFull(gate.Admit("a", 0)));
  EXPECT_TRUE(gate.Admit("b", 0).ok());
  EXPECT_EQ(gate.counters().refused_calls, 1u);
}

TEST(CallGate, OneTenantCannotTakeAllBytes) {
  CallGate gate({.calls = 9, .calls_per_tenant = 9, .bytes = 1000});
  absl::StatusOr<CallGate::Ticket> a = gate.Admit("a", 700);
  EXPECT_TRUE(IsFull(gate.Admit("a", 51)));
  EXPECT_TRUE(absl::IsResourceExhausted(a->Grow(51)));
  EXPECT_TRUE(gate.Admit("b", 300).ok());
  EXPECT_EQ(gate.CountersOf("a").bytes, 700u);
}

TEST(CallGate, AllTenantsTogetherAreBounded) {
  CallGate gate({.calls = 2, .calls_per_tenant = 2, .bytes = 1000});
  absl::StatusOr<CallGate::Ticket> a = gate.Admit("a", 0), b = gate.Admit("b", 0);
  EXPECT_TRUE(IsFull(gate.Admit("c", 0)));
}

TEST(CallGate, BytesAreBoundedAlsoWhenACallGrows) {
  CallGate gate({.calls = 9, .calls_per_tenant = 9, .bytes = 1000});
  absl::StatusOr<CallGate::Ticket> a = gate.Admit("a", 600), b = gate.Admit("b", 100);
  EXPECT_TRUE(IsFull(gate.Admit("c", 301)));
  EXPECT_TRUE(absl::IsResourceExhausted(b->Grow(301)));
  EXPECT_TRUE(b->Grow(300).ok());
  EXPECT_EQ(gate.counters().bytes, 1000u);
}

TEST(CallGate, WhatATicketHeldComesBackOnce) {
  CallGate gate({.calls = 1, .calls_per_tenant = 1, .bytes = 1000});
  {
    absl::StatusOr<CallGate::Ticket> a = gate.Admit("a", 500);
    CallGate::Ticket moved = *std::move(a);
    EXPECT_TRUE(IsFull(gate.Admit("a", 0)));
    moved.Release();
    moved.Release();
  }
  EXPECT_EQ(gate.counters().calls, 0u);
  EXPECT_EQ(gate.counters().bytes, 0u);
  EXPECT_TRUE(gate.Admit("a", 750).ok());
}

TEST(CallGate, ATenantsOwnBoundHoldsFromThenOn) {
  CallGate gate({.calls = 9, .calls_per_tenant = 4, .bytes = 1000});
  absl::StatusOr<CallGate::Ticket> a = gate.Admit("a", 0), b = gate.Admit("a", 0);
  gate.SetCallsMax("a", 1);
  EXPECT_EQ(gate.CountersOf("a").calls, 2u) << "calls in progress go on";
  a->Release();
  EXPECT_TRUE(IsFull(gate.Admit("a", 0)));
  b->Release();
  EXPECT_TRUE(gate.Admit("a", 0).ok());
  gate.SetCallsMax("a", 0);
  EXPECT_EQ(gate.CountersOf("a").calls_max, 4u);
}

}  // namespace
}  // namespace kvstore::service
