// Writes the wire vectors beside this folder with an implementation that shares no code with this project:
// the Go code that others generated from the original .proto files, and Google's Go protobuf runtime.
//
//	cd proto/tests/vectors/gen && go run . ..
//
// Each message type gets several samples:
//
//	filled    every field set, with values that differ from field to field; one sample for each member of a oneof
//	only      one boolean field set: when all are, two that changed places would not be noticed
//	extreme   the smallest or largest number, an enum value that nobody has named, and empty items in lists
//	present   sub-messages that are there but empty, as opposed to absent ones
//	empty     nothing set
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	_ "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/logger/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	_ "google.golang.org/genproto/googleapis/rpc/errdetails"
	_ "google.golang.org/genproto/googleapis/rpc/status"
	_ "google.golang.org/grpc/health/grpc_health_v1"
)

// How deep messages are nested before they are left empty.
const maximumDepth = 4

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: vectors <folder to write to>")
	}
	byPackage := map[string][]protoreflect.MessageDescriptor{}
	var methods []string
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if !wanted(file) {
			return true
		}
		collect(file.Messages(), func(message protoreflect.MessageDescriptor) {
			name := string(file.Package())
			if name == "" {
				name = "workload"
			}
			if name != "google.rpc" || message.Name() == "Status" || message.Name() == "ErrorInfo" {
				byPackage[name] = append(byPackage[name], message)
			}
		})
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				methods = append(methods, describe(service.Methods().Get(j)))
			}
		}
		return true
	})
	for _, name := range slices.Sorted(maps.Keys(byPackage)) {
		messages := byPackage[name]
		slices.SortFunc(messages, func(a, b protoreflect.MessageDescriptor) int {
			return strings.Compare(string(a.FullName()), string(b.FullName()))
		})
		var lines []string
		for _, message := range messages {
			lines = append(lines, samples(message)...)
		}
		write(filepath.Join(os.Args[1], name+".json"), lines)
	}
	slices.Sort(methods)
	write(filepath.Join(os.Args[1], "methods.json"), methods)
}

func wanted(file protoreflect.FileDescriptor) bool {
	name := string(file.Package())
	return strings.HasPrefix(name, "spire.") || name == "spiffe.broker" || name == "grpc.health.v1" ||
		name == "google.rpc" || file.Services().ByName("SpiffeWorkloadAPI") != nil
}

func collect(messages protoreflect.MessageDescriptors, take func(protoreflect.MessageDescriptor)) {
	for i := range messages.Len() {
		if message := messages.Get(i); !message.IsMapEntry() {
			take(message)
			collect(message.Messages(), take)
		}
	}
}

func describe(method protoreflect.MethodDescriptor) string {
	return line(map[string]any{
		"path":          fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name()),
		"input":         method.Input().FullName(),
		"output":        method.Output().FullName(),
		"client_stream": method.IsStreamingClient(),
		"server_stream": method.IsStreamingServer(),
	})
}

func samples(descriptor protoreflect.MessageDescriptor) []string {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.FullName())
	if err != nil {
		log.Fatal(err)
	}
	var lines []string
	seen := map[string]bool{}
	add := func(sample string, fill func(protoreflect.Message)) {
		message := kind.New()
		fill(message)
		wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(message.Interface())
		if err != nil {
			log.Fatalf("%s: %v", descriptor.FullName(), err)
		}
		wire = ascending(descriptor, wire)
		back := kind.New()
		if err := proto.Unmarshal(wire, back.Interface()); err != nil || !proto.Equal(back.Interface(), message.Interface()) {
			log.Fatalf("%s: sorting the fields changed the message: %v", descriptor.FullName(), err)
		}
		if seen[string(wire)] {
			return
		}
		seen[string(wire)] = true
		text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message.Interface())
		if err != nil {
			log.Fatalf("%s: %v", descriptor.FullName(), err)
		}
		// protojson varies its white space on purpose.
		var compact bytes.Buffer
		if err := json.Compact(&compact, text); err != nil {
			log.Fatal(err)
		}
		lines = append(lines, line(map[string]any{
			"message": descriptor.FullName(),
			"sample":  sample,
			"wire":    base64.StdEncoding.EncodeToString(wire),
			"json":    json.RawMessage(compact.Bytes()),
		}))
	}
	for choice := range choices(descriptor, 0) {
		add(fmt.Sprintf("filled %d", choice), func(message protoreflect.Message) {
			(&filler{choice: choice}).fill(message, 0)
		})
		add(fmt.Sprintf("extreme %d", choice), func(message protoreflect.Message) {
			(&filler{choice: choice, extreme: true}).fill(message, 0)
		})
	}
	fields := descriptor.Fields()
	for i := range fields.Len() {
		if field := fields.Get(i); field.Kind() == protoreflect.BoolKind && fields.Len() > 1 {
			add("only "+string(field.Name()), func(message protoreflect.Message) {
				message.Set(field, protoreflect.ValueOfBool(true))
			})
		}
	}
	add("present", present)
	add("empty", func(protoreflect.Message) {})
	return lines
}

// Sorts the fields of an encoded message by number. Go writes the members of a oneof last; any order is right, but
// one that everybody can agree on lets a test compare bytes.
func ascending(descriptor protoreflect.MessageDescriptor, wire []byte) []byte {
	type record struct {
		number protowire.Number
		bytes  []byte
	}
	var records []record
	for len(wire) > 0 {
		number, kind, tag := protowire.ConsumeTag(wire)
		if tag < 0 {
			log.Fatal(protowire.ParseError(tag))
		}
		size := protowire.ConsumeFieldValue(number, kind, wire[tag:])
		if size < 0 {
			log.Fatal(protowire.ParseError(size))
		}
		field := wire[:tag+size]
		if below := descriptor.Fields().ByNumber(number).Message(); below != nil {
			value, _ := protowire.ConsumeBytes(wire[tag:])
			field = protowire.AppendBytes(slices.Clone(wire[:tag]), ascending(below, value))
		}
		records = append(records, record{number, field})
		wire = wire[tag+size:]
	}
	slices.SortStableFunc(records, func(a, b record) int { return int(a.number) - int(b.number) })
	sorted := []byte{}
	for _, record := range records {
		sorted = append(sorted, record.bytes...)
	}
	return sorted
}

// The samples needed so that each member of each oneof in the message, or below it, is set once.
func choices(descriptor protoreflect.MessageDescriptor, depth int) int {
	most := 1
	for i := range descriptor.Oneofs().Len() {
		if oneof := descriptor.Oneofs().Get(i); !oneof.IsSynthetic() {
			most = max(most, oneof.Fields().Len())
		}
	}
	if depth < maximumDepth {
		for i := range descriptor.Fields().Len() {
			field := descriptor.Fields().Get(i)
			if field.IsMap() {
				field = field.MapValue()
			}
			if below := field.Message(); below != nil && !special(below) {
				most = max(most, choices(below, depth+1))
			}
		}
	}
	return most
}

func special(descriptor protoreflect.MessageDescriptor) bool {
	return descriptor.FullName() == "google.protobuf.Any" || descriptor.FullName() == "google.protobuf.Struct"
}

type filler struct {
	choice  int
	extreme bool
	// Grows with each value, so that no two fields hold the same.
	count int64
}

func (f *filler) fill(message protoreflect.Message, depth int) {
	switch message.Descriptor().FullName() {
	case "google.protobuf.Any":
		f.count++
		packed, err := anypb.New(&broker.WorkloadPIDReference{Pid: int32(f.count)})
		if err != nil {
			log.Fatal(err)
		}
		proto.Merge(message.Interface(), packed)
		return
	case "google.protobuf.Struct":
		f.count++
		claims, err := structpb.NewStruct(map[string]any{
			"aud": []any{"first", "second"}, "exp": float64(f.count) + 0.5, "flag": true, "none": nil,
			"object": map[string]any{"sub": "spiffe://example.org/workload"},
		})
		if err != nil {
			log.Fatal(err)
		}
		proto.Merge(message.Interface(), claims)
		return
	}
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if oneof := field.ContainingOneof(); oneof != nil && !oneof.IsSynthetic() {
			if oneof.Fields().Get(f.choice%oneof.Fields().Len()) != field {
				continue
			}
		}
		switch {
		case field.IsMap():
			entries := message.Mutable(field).Map()
			for range 2 {
				key := f.scalar(field.MapKey()).MapKey()
				if field.MapValue().Message() != nil {
					value := entries.NewValue()
					f.fill(value.Message(), depth+1)
					entries.Set(key, value)
				} else {
					entries.Set(key, f.scalar(field.MapValue()))
				}
			}
		case field.IsList():
			list := message.Mutable(field).List()
			for range 2 {
				switch {
				case field.Message() == nil:
					list.Append(f.scalar(field))
				case depth < maximumDepth:
					f.fill(list.AppendMutable().Message(), depth+1)
				default:
					list.AppendMutable()
				}
			}
			if f.extreme && field.Message() == nil {
				list.Append(list.NewElement())
			}
		case field.Message() != nil:
			below := message.Mutable(field).Message()
			if depth < maximumDepth {
				f.fill(below, depth+1)
			}
		default:
			message.Set(field, f.scalar(field))
		}
	}
}

func (f *filler) scalar(field protoreflect.FieldDescriptor) protoreflect.Value {
	f.count++
	switch field.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Int32Kind:
		if f.extreme {
			return protoreflect.ValueOfInt32(int32(math.MinInt32 + f.count))
		}
		return protoreflect.ValueOfInt32(int32(1000 + f.count))
	case protoreflect.Int64Kind:
		if f.extreme {
			return protoreflect.ValueOfInt64(math.MinInt64 + f.count)
		}
		return protoreflect.ValueOfInt64(1_700_000_000 + f.count)
	case protoreflect.Uint64Kind:
		if f.extreme {
			return protoreflect.ValueOfUint64(math.MaxUint64 - uint64(f.count))
		}
		return protoreflect.ValueOfUint64(uint64(2000 + f.count))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(fmt.Sprintf("%s-%d", field.Name(), f.count))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte{0xff, 0x00, byte(f.count), byte(field.Number())})
	case protoreflect.EnumKind:
		if f.extreme {
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(4000 + f.count))
		}
		values := field.Enum().Values()
		return protoreflect.ValueOfEnum(values.Get(1 + int(f.count)%(values.Len()-1)).Number())
	default:
		log.Fatalf("%s: no value for a field of kind %s", field.FullName(), field.Kind())
		panic("unreachable")
	}
}

func present(message protoreflect.Message) {
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		switch {
		case field.IsMap():
		case field.Message() != nil && field.Message().FullName() == "google.protobuf.Any":
			// Without a type it could not be written as JSON.
		case field.IsList() && field.Message() != nil:
			message.Mutable(field).List().AppendMutable()
		case field.IsList():
			list := message.Mutable(field).List()
			list.Append(list.NewElement())
		case field.Message() == nil:
		default:
			message.Mutable(field)
		}
	}
}

func line(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		log.Fatal(err)
	}
	return string(text)
}

func write(path string, lines []string) {
	file, err := os.Create(path)
	if err != nil {
		log.Fatal(err)
	}
	out := bufio.NewWriter(file)
	fmt.Fprint(out, "[\n", strings.Join(lines, ",\n"), "\n]\n")
	if err := out.Flush(); err != nil {
		log.Fatal(err)
	}
	if err := file.Close(); err != nil {
		log.Fatal(err)
	}
}
