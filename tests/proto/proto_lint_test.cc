// The .proto files keep their own rules: everything that a client may set or read says what it is,
// names have one form, and no number was given away and forgotten.
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace mneme {
namespace {

namespace fs = std::filesystem;
using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FileDescriptor;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

using Problems = std::vector<std::string>;

constexpr char kCamel[] = "([A-Z][a-z0-9]*)+";
constexpr char kSnake[] = "[a-z][a-z0-9]*(_[a-z0-9]+)*";
constexpr char kUpper[] = "[A-Z][A-Z0-9]*(_[A-Z0-9]+)*";

// Of the field request_id, in every request that has one: it says which request this is, and is no
// part of what it asks for.
constexpr int kRequestIdNumber = 100;

template <typename Thing>
void CheckName(const Thing& thing, const char* form, Problems& out) {
  if (!std::regex_match(thing.name(), std::regex(form))) {
    out.push_back(thing.full_name() + " has not the form of its kind");
  }
}

template <typename Thing>
void CheckComment(const Thing& thing, Problems& out) {
  google::protobuf::SourceLocation location;
  if (!thing.GetSourceLocation(&location) ||
      (location.leading_comments.empty() && location.trailing_comments.empty())) {
    out.push_back(thing.full_name() + " has no comment");
  }
}

// Every number up to the highest is in use, or reserved for ever.
template <typename Type>
void CheckNumber(const Type& type, bool used, int number, Problems& out) {
  if (!used && !type.IsReservedNumber(number)) {
    out.push_back(type.full_name() + ": number " + std::to_string(number) +
                  " is neither used nor reserved");
  }
}

void Check(const EnumDescriptor& type, Problems& out) {
  CheckName(type, kCamel, out);
  CheckComment(type, out);
  int highest = 0;
  for (int i = 0; i < type.value_count(); ++i) {
    CheckName(*type.value(i), kUpper, out);
    CheckComment(*type.value(i), out);
    highest = std::max(highest, type.value(i)->number());
  }
  for (int number = 0; number < highest; ++number) {
    CheckNumber(type, type.FindValueByNumber(number) != nullptr, number, out);
  }
}

void Check(const Descriptor& message, Problems& out) {
  if (message.options().map_entry()) return;
  CheckName(message, kCamel, out);
  // What a call takes and answers is what its comment says.
  bool of_a_call = false;
  for (const char* end : {"Request", "Response", "Progress"}) {
    of_a_call |= message.name().ends_with(end);
  }
  if (!of_a_call) CheckComment(message, out);
  int highest = 0;
  for (int i = 0; i < message.field_count(); ++i) {
    CheckName(*message.field(i), kSnake, out);
    CheckComment(*message.field(i), out);
    const int number = message.field(i)->number();
    if (number == kRequestIdNumber && message.field(i)->name() == "request_id") continue;
    highest = std::max(highest, number);
  }
  for (int number = 1; number < highest; ++number) {
    CheckNumber(message, message.FindFieldByNumber(number) != nullptr, number, out);
  }
  for (int i = 0; i < message.real_oneof_decl_count(); ++i) {
    CheckComment(*message.oneof_decl(i), out);
  }
  for (int i = 0; i < message.enum_type_count(); ++i) Check(*message.enum_type(i), out);
  for (int i = 0; i < message.nested_type_count(); ++i) Check(*message.nested_type(i), out);
}

Problems Lint(const FileDescriptor& file) {
  Problems out;
  for (int i = 0; i < file.message_type_count(); ++i) Check(*file.message_type(i), out);
  for (int i = 0; i < file.enum_type_count(); ++i) Check(*file.enum_type(i), out);
  for (int i = 0; i < file.service_count(); ++i) {
    const auto& service = *file.service(i);
    CheckName(service, kCamel, out);
    CheckComment(service, out);
    for (int m = 0; m < service.method_count(); ++m) {
      CheckName(*service.method(m), kCamel, out);
      CheckComment(*service.method(m), out);
    }
  }
  const auto& options = file.options();
  if (options.go_package().empty() || options.java_package().empty() ||
      !options.java_multiple_files() || options.csharp_namespace().empty()) {
    out.push_back(file.name() + " lacks an option for Go, Java or C#");
  }
  return out;
}

// The files below `root`, as protoc reads them, comments included.
class ProtoTree {
 public:
  explicit ProtoTree(const fs::path& root) {
    std::string set = (fs::temp_directory_path() / "mneme-protos-XXXXXX").string();
    close(mkstemp(set.data()));
    std::string command =
        PROTOC " --include_imports --include_source_info -I" + root.string() + " -o " + set;
    std::set<std::string> own;
    for (const auto& entry : fs::recursive_directory_iterator(root)) {
      if (entry.path().extension() != ".proto") continue;
      own.insert(fs::relative(entry.path(), root).string());
      command += " " + entry.path().string();
    }
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
    google::protobuf::FileDescriptorSet files;
    std::ifstream stream(set, std::ios::binary);
    EXPECT_TRUE(files.ParseFromIstream(&stream));
    fs::remove(set);
    for (const auto& file : files.file()) {  // imports come first
      const FileDescriptor* built = pool_.BuildFile(file);
      EXPECT_NE(built, nullptr) << file.name();
      if (built != nullptr && own.contains(file.name())) files_.push_back(built);
    }
  }
  const std::vector<const FileDescriptor*>& files() const { return files_; }

 private:
  google::protobuf::DescriptorPool pool_;
  std::vector<const FileDescriptor*> files_;
};

TEST(ProtoLintTest, TheApiHasNoProblem) {
  const ProtoTree tree(MNEME_SOURCE_DIR "/proto");
  EXPECT_GE(tree.files().size(), 6u);
  std::set<std::string> go_packages;
  for (const FileDescriptor* file : tree.files()) {
    EXPECT_THAT(Lint(*file), IsEmpty());
    if (file->package() == "mneme.v1") go_packages.insert(file->options().go_package());
  }
  EXPECT_EQ(go_packages.size(), 1u);  // files of one package import each other
}

TEST(ProtoLintTest, FindsWhatItLooksFor) {
  std::string folder = (fs::temp_directory_path() / "mneme-proto-XXXXXX").string();
  ASSERT_NE(mkdtemp(folder.data()), nullptr);
  std::ofstream(fs::path(folder) / "bad.proto") << R"(syntax = "proto3";
    // Good.
    message Good {
      reserved 1;
      int32 fine = 2;  // Good.
    }
    message bad_name {
      int32 notSnake = 2;
      // Good.
      enum Kind {
        zero = 0;  // Good.
        TWO = 2;   // Good.
      }
    }
  )" << std::flush;
  {
    const ProtoTree tree(folder);
    ASSERT_EQ(tree.files().size(), 1u);
    EXPECT_THAT(
        Lint(*tree.files()[0]),
        UnorderedElementsAre("bad_name has not the form of its kind", "bad_name has no comment",
                             "bad_name.notSnake has not the form of its kind",
                             "bad_name.notSnake has no comment",
                             "bad_name: number 1 is neither used nor reserved",
                             "bad_name.zero has not the form of its kind",
                             "bad_name.Kind: number 1 is neither used nor reserved",
                             "bad.proto lacks an option for Go, Java or C#"));
  }
  fs::remove_all(folder);
}

}  // namespace
}  // namespace mneme
