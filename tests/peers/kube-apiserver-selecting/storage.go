package etcd3

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apiserver/pkg/storage"
)

// selecting is a context for a request on many keys, of which only those that match are wanted. What comes is still to be
// held against the predicate: storage may know nothing of selectors, or may not understand a value.
func selecting(ctx context.Context, isRange bool, predicate storage.SelectionPredicate) context.Context {
	if !isRange || predicate.Empty() {
		return ctx
	}
	if stored := predicate.Stored; stored != nil {
		return clientv3.WithSelectors(ctx, stored.Labels, stored.Fields)
	}
	return clientv3.WithSelectors(ctx, predicate.Label.String(), predicate.Field.String())
}
