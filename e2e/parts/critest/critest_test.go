// Package critest pins the CRI conformance suite; `go test -c` builds it from its own module.
package critest

import _ "sigs.k8s.io/cri-tools/pkg/validate"
