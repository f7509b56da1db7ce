#include "kvstore/base/thread_preference.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

namespace kvstore {
namespace {

constexpr int kLeastPreferred = 19;

int Niceness() { return getpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid))); }

TEST(ThreadPreference, ThreadsStartedByOneThatGivesWayGiveWayToo) {
  const int before = Niceness();
  int of_starter = before, of_started = before;
  RunGivingWay([&] {
    of_starter = Niceness();
    std::thread([&] { of_started = Niceness(); }).join();
  });
  EXPECT_EQ(of_starter, std::min(before + 10, kLeastPreferred));
  EXPECT_EQ(of_started, of_starter);
  EXPECT_EQ(Niceness(), before) << "only that thread";
}

TEST(ThreadPreference, WhatAPreferredThreadStartsIsNotPreferred) {
  const int before = Niceness();
  int of_preferred = before, of_started = before;
  std::thread([&] {
    PreferThisThread(ThreadPreference::kBeforeOthers);
    of_preferred = Niceness();
    std::thread([&] { of_started = Niceness(); }).join();
  }).join();
  EXPECT_LE(of_preferred, before) << "or as before, where the system refuses";
  EXPECT_GE(of_started, std::min(before, 0));
}

}  // namespace
}  // namespace kvstore
