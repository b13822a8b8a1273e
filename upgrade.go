package idem

import (
	"net/http"
	"regexp"
	"strings"
)

// offered are the protocols that a client only offers to go on with: the request is an ordinary one, and a server may
// ignore the offer. Java's HttpClient, Apache's and curl --http2 make one with requests of every kind. All others, such as
// WebSocket, take the connection over.
var offered = regexp.MustCompile(`(?i)^(h2c?(-[0-9]+)?|tls|http)(/.*)?$`)

// handsOver reports whether r asks for its connection to be handed over to another protocol (RFC 9110, section 7.8). Traefik
// does not hand it over if the client names several protocols, so one offered protocol is enough for false.
func handsOver(r *http.Request) bool {
	protocols := options(r.Header["Upgrade"])
	for _, protocol := range protocols {
		if offered.MatchString(protocol) {
			return false
		}
	}
	for _, option := range options(r.Header["Connection"]) {
		if strings.EqualFold(option, "upgrade") {
			return len(protocols) > 0
		}
	}
	return false
}

// dropOffer removes the offer of another protocol from r, whose header is a copy: after a switch of protocols no answer could
// be recorded.
func dropOffer(r *http.Request) {
	var others []string
	for _, option := range options(r.Header["Connection"]) {
		if !strings.EqualFold(option, "upgrade") && !strings.EqualFold(option, "http2-settings") {
			others = append(others, option)
		}
	}
	delete(r.Header, "Upgrade")
	delete(r.Header, "Http2-Settings")
	delete(r.Header, "Connection")
	if others != nil {
		r.Header["Connection"] = []string{strings.Join(others, ", ")}
	}
}

// options returns the elements of a comma-separated list in the lines of a header.
func options(lines []string) []string {
	var all []string
	for _, option := range strings.Split(strings.Join(lines, ","), ",") {
		option = strings.TrimSpace(option)
		if option != "" {
			all = append(all, option)
		}
	}
	return all
}

// isGRPC reports whether r is a call of gRPC, which converses with the backend while it is being sent.
func isGRPC(r *http.Request) bool {
	types := r.Header["Content-Type"]
	return len(types) > 0 && strings.HasPrefix(types[0], "application/grpc")
}

// isPreflight reports whether r is a CORS preflight: a browser asks whether it may send another request (Fetch standard).
func isPreflight(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.Header["Access-Control-Request-Method"] != nil
}
