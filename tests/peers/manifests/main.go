// Reads Kubernetes manifests as strictly as an API server that knows all of their kinds would: an unknown
// kind, an unknown field, a field of another type or one that is given twice is a mistake. Beside Kubernetes'
// own kinds it knows those of cert-manager and of the Prometheus operator, and kind's file.
//
// It reads a YAML stream from standard input, prints each object as one line of JSON, says each mistake on
// standard error, and ends with 1 where there was one.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	yamlv3 "go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	builtin "k8s.io/client-go/kubernetes/scheme"
	kind "sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
	"sigs.k8s.io/yaml"
)

func main() {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		builtin.AddToScheme, certmanager.AddToScheme, monitoring.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			fail(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	documents := utilyaml.NewYAMLReader(bufio.NewReader(os.Stdin))
	count, mistakes := 0, 0
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			fail(err)
		}
		asJSON, err := yaml.YAMLToJSONStrict(document)
		if err != nil {
			fail(err)
		}
		if string(asJSON) == "null" {
			continue
		}
		count++
		if err := read(decoder, document, asJSON); err != nil {
			mistakes++
			fmt.Fprintf(os.Stderr, "%s: %v\n", name(asJSON), err)
		}
		fmt.Println(string(asJSON))
	}
	if count == 0 {
		fail(errors.New("there is no object in the input"))
	}
	if mistakes > 0 {
		os.Exit(1)
	}
}

func read(decoder runtime.Decoder, document, asJSON []byte) error {
	var it struct{ APIVersion string }
	if err := json.Unmarshal(asJSON, &it); err != nil {
		return err
	}
	if it.APIVersion != "kind.x-k8s.io/v1alpha4" {
		_, _, err := decoder.Decode(document, nil, nil)
		return err
	}
	fields := yamlv3.NewDecoder(bytes.NewReader(document))
	fields.KnownFields(true)
	return fields.Decode(&kind.Cluster{})
}

// name says which object a mistake is in.
func name(object []byte) string {
	var it struct {
		Kind     string
		Metadata struct{ Name string }
	}
	_ = json.Unmarshal(object, &it)
	return it.Kind + "/" + it.Metadata.Name
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "manifests:", err)
	os.Exit(1)
}
