// open, namespaces, clear.
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/units.h"
#include "tools/kvctl/commands.h"
#include "tools/kvctl/daemon_calls.h"
#include "tools/kvctl/opened_namespace.h"
#include "tools/kvctl/report.h"
#include "tools/kvctl/spec_file.h"
#include "tools/kvctl/tier_names.h"

namespace kvstore::kvctl {
namespace {

using nlohmann::json;

// All fields under their names on the wire; of the salt only whether there is one.
json SpecJson(const v1::NamespaceSpec& spec) {
  json out = json::object();
  const auto* descriptor = v1::NamespaceSpec::descriptor();
  const auto& reflection = *v1::NamespaceSpec::GetReflection();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const auto* field = descriptor->field(i);
    if (field->name() == "salt") {
      out["has_salt"] = !spec.salt().empty();
    } else if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_STRING) {
      out[field->name()] = reflection.GetString(spec, field);
    } else {
      out[field->name()] = reflection.GetUInt32(spec, field);
    }
  }
  return out;
}

uint64_t BytesIn(const v1::NamespacesResponse::Namespace& ns, v1::Tier tier) {
  uint64_t bytes = 0;
  for (const auto& row : ns.bytes_by_tier()) bytes += row.tier() == tier ? row.bytes() : 0;
  return bytes;
}

json NamespaceJson(const v1::NamespacesResponse::Namespace& ns) {
  json bytes_by_tier = json::object();
  for (const v1::Tier tier : {v1::TIER_GPU, v1::TIER_DRAM, v1::TIER_NVME}) {
    bytes_by_tier[TierText(tier)] = BytesIn(ns, tier);
  }
  return {{"name", ns.name()},
          {"fingerprint", FingerprintHex(ns.fingerprint())},
          {"epoch", ns.epoch()},
          {"is_open", ns.is_open()},
          {"page_bytes", ns.page_bytes()},
          {"bytes_by_tier", bytes_by_tier},
          {"spec", SpecJson(ns.spec())}};
}

}  // namespace

absl::StatusOr<ExitCode> RunOpen(const Context& context) {
  const Arguments& arguments = context.arguments;
  v1::OpenNamespaceRequest request;
  request.set_name(arguments.name);
  if (arguments.spec_path.empty()) {
    ASSIGN_OR_RETURN(*request.mutable_spec(), SpecFromFlags(arguments.spec));
  } else {
    ASSIGN_OR_RETURN(*request.mutable_spec(), ReadSpecFile(arguments.spec_path));
  }
  ASSIGN_OR_RETURN(const v1::OpenNamespaceResponse opened, context.daemon.OpenNamespace(request));
  const std::string fingerprint = FingerprintHex(opened.fingerprint());
  if (arguments.json) {
    PrintJson({{"namespace", opened.name()},
               {"fingerprint", fingerprint},
               {"page_bytes", opened.page_bytes()},
               {"slot_bytes", opened.slot_bytes()},
               {"spec", SpecJson(opened.spec())}});
  } else {
    PrintText(RenderPairs(
        {{"namespace", Printable(opened.name())},
         {"fingerprint", fingerprint},
         {"page", absl::StrCat(FormatBytes(opened.page_bytes()), " (", opened.spec().num_slices(),
                               " slices of ", FormatBytes(opened.spec().slice_bytes()), ")")},
         {"block", absl::StrCat(opened.spec().block_tokens(), " tokens")}}));
  }
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunNamespaces(const Context& context) {
  ASSIGN_OR_RETURN(const v1::NamespacesResponse response, context.daemon.Namespaces());
  json rows = json::array();
  Table table({{"NAME"},
               {"FINGERPRINT"},
               {"TENANT"},
               {"MODEL"},
               {"OPEN"},
               {"PAGE", Align::kRight},
               {"GPU", Align::kRight},
               {"DRAM", Align::kRight},
               {"NVME", Align::kRight}});
  for (const auto& ns : response.namespaces()) {
    rows.push_back(NamespaceJson(ns));
    table.Add({Printable(ns.name()), FingerprintHex(ns.fingerprint()),
               Printable(ns.spec().tenant()), Printable(ns.spec().model()),
               ns.is_open() ? "yes" : "no", FormatBytes(ns.page_bytes()),
               FormatBytes(BytesIn(ns, v1::TIER_GPU)), FormatBytes(BytesIn(ns, v1::TIER_DRAM)),
               FormatBytes(BytesIn(ns, v1::TIER_NVME))});
  }
  if (context.arguments.json) {
    PrintJson({{"namespaces", rows}});
  } else {
    PrintText(table.Render());
  }
  return ExitCode::kDone;
}

absl::StatusOr<ExitCode> RunClear(const Context& context) {
  ASSIGN_OR_RETURN(const client::Namespace ns,
                   FindNamespace(context.daemon, context.arguments.name));
  v1::ClearRequest request;
  client::FillRef(ns, request.mutable_namespace_());
  ASSIGN_OR_RETURN(const v1::ClearResponse response, context.daemon.Clear(request));
  if (context.arguments.json) {
    PrintJson({{"namespace", ns.name}, {"epoch", response.epoch()}});
  } else {
    PrintText(absl::StrCat("cleared ", Printable(ns.name), "; epoch ", response.epoch(), "\n"));
  }
  return ExitCode::kDone;
}

}  // namespace kvstore::kvctl
