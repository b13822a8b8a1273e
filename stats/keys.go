package stats

// Key is what may be shown of a key. What is not known is empty. It has no unexported fields, since Yaegi would marshal those too.
type Key struct {
	ID      string `json:"id"`
	State   string `json:"state"` // running, done, unknown, unkept, observed or free; in a list also unreachable: its record could not be read
	Since   string `json:"since,omitempty"`
	Until   string `json:"until,omitempty"`  // end of the lease, or of the record
	Status  int    `json:"status,omitempty"` // of the answer that the backend gave
	Bytes   int    `json:"bytes,omitempty"`  // of the kept answer's body
	Method  string `json:"method"`
	Host    string `json:"host,omitempty"`
	Path    string `json:"path"`
	Traefik string `json:"traefik,omitempty"` // that runs it, or ran it
	Version string `json:"version,omitempty"` // tells its record from any other
}

// Where names the target of a request as an endpoint is named, but with its ids.
func Where(method, host, escaped string) string {
	return endpointName(method, host, readable(escaped))
}

// SetWhere sets where the request of k went to.
func (k *Key) SetWhere(name string) {
	k.Method, k.Host, k.Path = splitName(name)
}
