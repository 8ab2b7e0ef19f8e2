// Selectors says what Kubernetes' own packages make of selectors and objects: an oracle for the tests.
//
// It reads questions, a JSON object in each line: an object as JSON, and selectors for it. It answers each in a line:
// the object as an API server may store it (protobuf where it is one of Kubernetes' own kinds, JSON and CBOR), and of
// each selector whether it can be read and whether it selects the object, after the conversion and the defaults that an
// API server gives what it reads.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/registry/apps/replicaset"
	"k8s.io/kubernetes/pkg/registry/batch/job"
	"k8s.io/kubernetes/pkg/registry/certificates/certificates"
	"k8s.io/kubernetes/pkg/registry/core/event"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	"k8s.io/kubernetes/pkg/registry/core/node"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim"
	"k8s.io/kubernetes/pkg/registry/core/pod"
	"k8s.io/kubernetes/pkg/registry/core/replicationcontroller"
	"k8s.io/kubernetes/pkg/registry/core/secret"
	"k8s.io/kubernetes/pkg/registry/core/service"

	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	_ "k8s.io/kubernetes/pkg/apis/certificates/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
)

type selector struct {
	Labels string `json:"labels"`
	Fields string `json:"fields"`
}

type question struct {
	Object json.RawMessage `json:"object"`
	// The paths by which a custom resource can be selected.
	Selectable []string   `json:"selectable"`
	Selectors  []selector `json:"selectors"`
}

type verdict struct {
	// What can't be read has none.
	IsRead     bool `json:"is_read"`
	IsSelected bool `json:"is_selected"`
}

type answer struct {
	Encodings [][]byte  `json:"encodings"`
	Verdicts  []verdict `json:"verdicts"`
}

type getAttrs func(runtime.Object) (labels.Set, fields.Set, error)

var kinds = map[string]getAttrs{
	"Pod":                       pod.GetAttrs,
	"Event":                     event.GetAttrs,
	"Node":                      node.GetAttrs,
	"Secret":                    secret.GetAttrs,
	"Namespace":                 namespace.GetAttrs,
	"Service":                   service.GetAttrs,
	"PersistentVolumeClaim":     persistentvolumeclaim.GetAttrs,
	"ReplicationController":     replicationcontroller.GetAttrs,
	"ReplicaSet":                replicaset.GetAttrs,
	"Job":                       job.GetAttrs,
	"CertificateSigningRequest": certificates.GetAttrs,
}

// What an API server makes of what it reads: the labels and fields by which it selects.
func attributes(it *question) (labels.Set, fields.Set, [][]byte, error) {
	var object unstructured.Unstructured
	if err := object.UnmarshalJSON(it.Object); err != nil {
		return nil, nil, nil, err
	}
	encodings := [][]byte{it.Object}
	if of, ok := kinds[object.GetKind()]; ok && !strings.Contains(object.GroupVersionKind().Group, "example") {
		decoder := legacyscheme.Codecs.UniversalDecoder()
		internal, _, err := decoder.Decode(it.Object, nil, nil)
		if err != nil {
			return nil, nil, nil, err
		}
		// As it came, without defaults: an older API server may not have known them.
		stored, err := legacyscheme.Scheme.New(object.GroupVersionKind())
		if err != nil {
			return nil, nil, nil, err
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, stored); err != nil {
			return nil, nil, nil, err
		}
		stored.GetObjectKind().SetGroupVersionKind(object.GroupVersionKind())
		var bytes bytes.Buffer
		writer := protobuf.NewSerializer(legacyscheme.Scheme, legacyscheme.Scheme)
		if err := writer.Encode(stored, &bytes); err != nil {
			return nil, nil, nil, err
		}
		labels, fields, err := of(internal)
		return labels, fields, append(encodings, bytes.Bytes()), err
	}
	var bytes bytes.Buffer
	writer := cbor.NewSerializer(unstructuredCreater{}, unstructuredTyper{})
	if err := writer.Encode(&object, &bytes); err != nil {
		return nil, nil, nil, err
	}
	var selectable []apiextensions.SelectableField
	for _, path := range it.Selectable {
		selectable = append(selectable, apiextensions.SelectableField{JSONPath: path})
	}
	strategy := customresource.NewStrategy(nil, object.GetNamespace() != "", object.GroupVersionKind(), nil, nil, nil, nil, nil, selectable)
	labels, fields, err := strategy.GetAttrs(&object)
	return labels, fields, append(encodings, bytes.Bytes()), err
}

type unstructuredCreater struct{}

func (unstructuredCreater) New(kind schema.GroupVersionKind) (runtime.Object, error) {
	return &unstructured.Unstructured{}, nil
}

type unstructuredTyper struct{}

func (unstructuredTyper) ObjectKinds(object runtime.Object) ([]schema.GroupVersionKind, bool, error) {
	return []schema.GroupVersionKind{object.GetObjectKind().GroupVersionKind()}, false, nil
}

func (unstructuredTyper) Recognizes(schema.GroupVersionKind) bool { return true }

func judge(it selector, of labels.Set, fieldsOf fields.Set) verdict {
	byLabels, err := labels.Parse(it.Labels)
	if err != nil {
		return verdict{}
	}
	byFields, err := fields.ParseSelector(it.Fields)
	if err != nil {
		return verdict{}
	}
	return verdict{IsRead: true, IsSelected: byLabels.Matches(of) && byFields.Matches(fieldsOf)}
}

func run() error {
	if err := utilfeature.DefaultMutableFeatureGate.Set("CustomResourceFieldSelectors=true"); err != nil {
		fmt.Fprintln(os.Stderr, "selectors:", err, "(it is on for good, then)")
	}
	questions := bufio.NewScanner(os.Stdin)
	questions.Buffer(nil, 1<<26)
	answers := json.NewEncoder(os.Stdout)
	for questions.Scan() {
		var it question
		if err := json.Unmarshal(questions.Bytes(), &it); err != nil {
			return fmt.Errorf("a question can't be read: %w", err)
		}
		labels, fields, encodings, err := attributes(&it)
		if err != nil {
			return fmt.Errorf("%s: %w", it.Object, err)
		}
		answer := answer{Encodings: encodings}
		for _, selector := range it.Selectors {
			answer.Verdicts = append(answer.Verdicts, judge(selector, labels, fields))
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
	return questions.Err()
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "selectors:", err)
		os.Exit(1)
	}
}
