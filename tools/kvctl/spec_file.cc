#include "tools/kvctl/spec_file.h"

#include <charconv>
#include <limits>
#include <set>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "kvstore/base/status_macros.h"
#include "kvstore/base/toml.h"
#include "kvstore/base/units.h"

namespace kvstore::kvctl {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

// The flag names, where they differ from the field names.
struct Alias {
  std::string_view key;
  const char* field;
};
constexpr Alias kAliases[] = {
    {"revision", "weights_revision"}, {"dtype", "kv_dtype"}, {"slices", "num_slices"}};

const FieldDescriptor* FindField(std::string_view key) {
  for (const Alias& alias : kAliases) {
    if (alias.key == key) return v1::NamespaceSpec::descriptor()->FindFieldByName(alias.field);
  }
  return v1::NamespaceSpec::descriptor()->FindFieldByName(std::string(key));
}

std::string ValidKeys() {
  std::string out;
  const Descriptor* spec = v1::NamespaceSpec::descriptor();
  for (int i = 0; i < spec->field_count(); ++i) {
    std::string_view name = spec->field(i)->name();
    for (const Alias& alias : kAliases) {
      if (alias.field == name) name = alias.key;
    }
    absl::StrAppend(&out, i > 0 ? ", " : "", std::string(name));
  }
  return out;
}

absl::StatusOr<uint32_t> ToUint32(uint64_t value) {
  if (value > std::numeric_limits<uint32_t>::max())
    return absl::InvalidArgumentError("is above 4294967295");
  return static_cast<uint32_t>(value);
}

// "65536", or with a unit: "64KiB".
absl::StatusOr<uint32_t> ParseSliceBytes(const std::string& text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size()) return ToUint32(value);
  ASSIGN_OR_RETURN(value, ParseBytes(text));
  return ToUint32(value);
}

absl::StatusOr<uint32_t> IntegerOf(const toml::node& node, const FieldDescriptor& field) {
  if (const auto* integer = node.as_integer()) {
    if (integer->get() < 0) return absl::InvalidArgumentError("is negative");
    return ToUint32(static_cast<uint64_t>(integer->get()));
  }
  if (const auto* text = node.as_string(); text != nullptr && field.name() == "slice_bytes") {
    return ParseSliceBytes(text->get());
  }
  return absl::InvalidArgumentError("must be an integer");
}

absl::Status SetField(v1::NamespaceSpec& spec, const FieldDescriptor& field,
                      const toml::node& node) {
  const google::protobuf::Reflection& reflection = *v1::NamespaceSpec::GetReflection();
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
    const auto* text = node.as_string();
    if (text == nullptr) return absl::InvalidArgumentError("must be a string");
    reflection.SetString(&spec, &field, text->get());
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const uint32_t value, IntegerOf(node, field));
  reflection.SetUInt32(&spec, &field, value);
  return absl::OkStatus();
}

absl::Status At(const std::string& path, const toml::source_region& source, std::string_view key,
                const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat(path, ":", source.begin.line, ": ", std::string(key), " ", what));
}

}  // namespace

absl::StatusOr<v1::NamespaceSpec> ReadSpecFile(const std::string& path) {
  const toml::parse_result parsed = toml::parse_file(path);
  if (!parsed) {
    const toml::parse_error& error = parsed.error();
    return absl::InvalidArgumentError(
        absl::StrCat(path, ":", error.source().begin.line, ": ", std::string(error.description())));
  }
  v1::NamespaceSpec spec;
  std::set<int> seen;
  for (auto&& [key, node] : parsed.table()) {
    const FieldDescriptor* field = FindField(key.str());
    if (field == nullptr) {
      return At(path, key.source(), key.str(),
                absl::StrCat("is not a key; valid are ", ValidKeys()));
    }
    if (!seen.insert(field->number()).second)
      return At(path, key.source(), key.str(), "is given under two names");
    if (absl::Status status = SetField(spec, *field, node); !status.ok()) {
      return At(path, key.source(), key.str(),
                std::string(status.message().data(), status.message().size()));
    }
  }
  return spec;
}

absl::StatusOr<v1::NamespaceSpec> SpecFromFlags(const SpecFlags& flags) {
  v1::NamespaceSpec spec;
  spec.set_model(flags.model);
  spec.set_weights_revision(flags.revision);
  spec.set_adapter(flags.adapter);
  spec.set_kv_dtype(flags.dtype);
  spec.set_layout(flags.layout);
  spec.set_tenant(flags.tenant);
  spec.set_block_tokens(flags.block_tokens);
  spec.set_num_slices(flags.slices);
  if (flags.slice_bytes.empty()) return spec;
  absl::StatusOr<uint32_t> slice_bytes = ParseSliceBytes(flags.slice_bytes);
  if (!slice_bytes.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--slice-bytes: ", slice_bytes.status().message()));
  }
  spec.set_slice_bytes(*slice_bytes);
  return spec;
}

}  // namespace kvstore::kvctl
