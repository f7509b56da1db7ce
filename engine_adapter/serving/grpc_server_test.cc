#include "engine_adapter/serving/grpc_server.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine_adapter/serving/test_model.h"
#include "kvstore/v1/engine.grpc.pb.h"

namespace kvstore::engine {
namespace {

struct Reply {
  grpc::Status status;
  std::string text;
  std::vector<uint32_t> token_ids;
  v1::GenerateEnd end;
  int messages = 0;
};

// A server on a Unix socket of its own, and a client.
class GrpcServerTest : public testing::Test {
 protected:
  void Start(SchedulerOptions options = {}, const std::string& api_key = "") {
    options.kv_tokens_max = 1 << 16;
    options.step_tokens = 16;
    if (options.sequences_max > 16) options.sequences_max = 16;
    scheduler_ = std::make_unique<Scheduler>(
        backend_, [this] { return std::make_unique<PrivatePages>(model_.backend->page_memory()); },
        options, metrics_);
    service_ = std::make_unique<CompletionService>(
        ServedModel{.name = "m", .context_tokens = 512, .default_max_tokens = 20}, tokenizer_,
        std::nullopt, *scheduler_, metrics_);
    const std::string address = "unix:" + (model_.folder.path() / "s").string();
    auto server = GrpcServer::Start({.address = address, .api_key = api_key, .block_tokens = 16},
                                    *service_, edge_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = v1::Engine::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  }

  ~GrpcServerTest() override {
    if (scheduler_ != nullptr) scheduler_->Stop(absl::InfinitePast());
    edge_.Stop();
    server_.reset();
  }

  Reply Ask(const v1::GenerateRequest& request, const std::string& authorization = "") {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    if (!authorization.empty()) context.AddMetadata("authorization", authorization);
    const auto reader = stub_->Generate(&context, request);
    Reply reply;
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
      ++reply.messages;
      reply.text += message.text();
      reply.token_ids.insert(reply.token_ids.end(), message.token_ids().begin(),
                             message.token_ids().end());
      if (message.has_end()) reply.end = message.end();
    }
    reply.status = reader->Finish();
    return reply;
  }

  static v1::GenerateRequest Request(const std::vector<uint32_t>& ids, uint32_t max_tokens) {
    v1::GenerateRequest request;
    request.mutable_token_ids()->mutable_ids()->Add(ids.begin(), ids.end());
    request.set_max_tokens(max_tokens);
    return request;
  }

  TestModel model_;
  FaultyBackend backend_{*model_.backend};
  Tokenizer tokenizer_ = ByteTokenizer();
  ServingMetrics metrics_;
  TaskThreads edge_{"kv-edge", 2, 64};
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<CompletionService> service_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<v1::Engine::Stub> stub_;
};

TEST_F(GrpcServerTest, StreamsTheTokensThatGenerateGives) {
  Start();
  const std::vector<uint32_t> prompt = {1, 2, 3, 4, 5};
  const Reply reply = Ask(Request(prompt, 30));
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  EXPECT_EQ(reply.token_ids, model_.Alone({.prompt_ids = prompt, .max_tokens = 30}));
  EXPECT_EQ(reply.text, *tokenizer_.Decode(reply.token_ids, SkipSpecialTokens::kYes));
  EXPECT_EQ(reply.end.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(reply.end.prompt_tokens(), 5u);
  EXPECT_EQ(reply.end.output_tokens(), 30u);
}

TEST_F(GrpcServerTest, ATextIsTokenizedAndAStopStringEndsTheAnswer) {
  Start();
  v1::GenerateRequest request;
  request.set_text("abc");
  request.set_max_tokens(30);
  const Reply whole = Ask(request);
  ASSERT_TRUE(whole.status.ok());
  // A character somewhere behind the first: its first occurrence ends the answer.
  const auto is_ascii = [](char c) { return c >= 0; };
  const auto at = std::find_if(whole.text.begin() + 1, whole.text.end(), is_ascii);
  ASSERT_NE(at, whole.text.end());
  const std::string stop(1, *at);
  request.add_stop(stop);
  const Reply stopped = Ask(request);
  EXPECT_EQ(stopped.text, whole.text.substr(0, whole.text.find(stop)));
  EXPECT_EQ(stopped.end.reason(), v1::FINISH_REASON_STOP);
}

TEST_F(GrpcServerTest, CancellingACallEndsItsRequest) {
  backend_.pass_ms = 10;  // no answer ends by itself meanwhile
  Start();
  for (int i = 0; i < 20; ++i) {
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, Request({1, 2, 3}, 500));
    v1::GenerateResponse message;
    if (i % 2 == 0) {
      EXPECT_TRUE(reader->Read(&message));
    }
    context.TryCancel();
    while (reader->Read(&message)) {
    }
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  const auto is_idle = [this] {
    const SchedulerState state = scheduler_->state();
    return state.waiting + state.loading + state.running + state.closing == 0;
  };
  for (int i = 0; i < 1000 && !is_idle(); ++i) absl::SleepFor(absl::Milliseconds(10));
  EXPECT_TRUE(is_idle());
  EXPECT_THAT(metrics_.Page(scheduler_->state()),
              testing::HasSubstr("ended_total{reason=\"length\"} 0\n"));
}

TEST_F(GrpcServerTest, RefusesBadRequestsWithTheirCode) {
  Start();
  v1::GenerateRequest empty, hot = Request({1}, 1), chat, stops = Request({1}, 1);
  hot.set_temperature(-1);
  chat.mutable_conversation()->add_messages()->set_role("user");
  stops.add_stop("");
  for (const v1::GenerateRequest& request :
       {empty, hot, chat, stops, Request({1}, 0), Request({}, 1), Request({256}, 1),
        Request({1}, 512)}) {
    const Reply reply = Ask(request);
    EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
        << request.ShortDebugString();
    EXPECT_EQ(reply.messages, 0);
  }
}

TEST_F(GrpcServerTest, AFullQueueIsResourceExhausted) {
  backend_.pass_ms = 10;  // the first one is still at it
  Start({.queue_max = 0, .sequences_max = 1});
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Request({1}, 500));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(Ask(Request({1}, 1)).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  context.TryCancel();
}

TEST_F(GrpcServerTest, AsksForTheKey) {
  Start({}, "a-secret-of-16-b");
  EXPECT_EQ(Ask(Request({1}, 1)).status.error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(Ask(Request({1}, 1), "Bearer a-secret-of-16-c").status.error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(Ask(Request({1}, 1), "Bearer a-secret-of-16-b").status.ok());
}

TEST_F(GrpcServerTest, ADrainedServerIsUnavailable) {
  Start();
  scheduler_->StartDraining();
  EXPECT_EQ(Ask(Request({1}, 1)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace kvstore::engine
