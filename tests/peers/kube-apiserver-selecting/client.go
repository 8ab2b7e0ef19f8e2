package clientv3

import (
	"context"
	"encoding/binary"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Where the selectors are in a request: numbers of fields that etcd has not given to others.
const (
	rangeLabels = 14
	rangeFields = 15
	watchLabels = 9
	watchFields = 10
)

type selectors struct{ labels, fields string }

type selectorsKey struct{}

// WithSelectors is a context whose ranges and watches say which objects are wanted.
func WithSelectors(ctx context.Context, labels, fields string) context.Context {
	return context.WithValue(ctx, selectorsKey{}, selectors{labels, fields})
}

func selecting(ctx context.Context, request *pb.RangeRequest) *pb.RangeRequest {
	request.XXX_unrecognized = selectorsOf(ctx, rangeLabels, rangeFields)
	return request
}

// The selectors of a context as fields of a message. A message keeps what it does not know, and so no generated code need change.
func selectorsOf(ctx context.Context, labels, fields uint64) []byte {
	of, _ := ctx.Value(selectorsKey{}).(selectors)
	return appendText(appendText(nil, labels, of.labels), fields, of.fields)
}

func appendText(to []byte, field uint64, text string) []byte {
	const lengthDelimited = 2
	if text == "" {
		return to
	}
	to = binary.AppendUvarint(to, field<<3|lengthDelimited)
	to = binary.AppendUvarint(to, uint64(len(text)))
	return append(to, text...)
}
