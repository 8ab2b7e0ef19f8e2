package apiserver

import (
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/storage"
)

// selectAsStored lets storage be asked for that part of a selector only that says the same of an object as it is stored and as
// it is read in this version.
func selectAsStored(store *genericregistry.Store, crd *apiextensionsv1.CustomResourceDefinition, version string, schema *structuralschema.Structural) {
	stored := crd.Status.StoredVersions
	isStored := len(stored) == 1 && stored[0] == version
	// Without a webhook a conversion changes the version alone.
	keepsLabels := isStored || crd.Spec.Conversion.Strategy == apiextensionsv1.NoneConverter
	isSame := func(path, value string) (string, string, error) {
		isName := path == "metadata.name" || path == "metadata.namespace"
		if isName || (isStored && isReadAsStored(schema, path)) {
			return path, value, nil
		}
		return "", "", nil // leaves this requirement out
	}
	match := store.PredicateFunc
	store.PredicateFunc = func(label labels.Selector, field fields.Selector) storage.SelectionPredicate {
		predicate := match(label, field)
		stored := struct{ Labels, Fields string }{}
		if keepsLabels {
			stored.Labels = predicate.Label.String()
		}
		if same, err := predicate.Field.Transform(isSame); err == nil {
			stored.Fields = same.String()
		}
		predicate.Stored = &stored
		return predicate
	}
}

// isReadAsStored is false where a default may stand in for what is not stored.
func isReadAsStored(schema *structuralschema.Structural, path string) bool {
	if schema == nil {
		return false
	}
	at := *schema
	for _, name := range strings.Split(path, ".") {
		below, isKnown := at.Properties[name]
		if !isKnown || below.Default.Object != nil {
			return false
		}
		at = below
	}
	return true
}
