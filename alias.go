package idem

import (
	"io"
	"net/http"
	"regexp"
	"strings"
)

// Backends that make variables of headers (CGI, WSGI, PHP) take every character of a name but letters and digits for an
// underscore. To them Idempotency_Key and Idempotency.Key are Idempotency-Key; to Go, and so to the plugin, they are other
// headers. Such an alias of the key's header, or of one in scope, could tell the backend of another key or caller.

// setAliases sets what finds the aliases of names.
func (s *settings) setAliases(names []string) {
	var patterns []string
	for _, name := range names {
		patterns = append(patterns, separator.ReplaceAllString(name, "[^A-Za-z0-9]"))
	}
	s.aliases = regexp.MustCompile("(?i)^(?:" + strings.Join(patterns, "|") + ")$")
	s.harmless = map[string]bool{}
	for _, name := range usualHeaders {
		s.harmless[name] = !s.aliases.MatchString(name)
	}
	for _, name := range names {
		s.harmless[name] = true
	}
}

var separator = regexp.MustCompile("[^A-Za-z0-9]")

// usualHeaders are those that need not be looked at one by one, which under Yaegi takes several times as long.
var usualHeaders = strings.Fields(`Accept Accept-Charset Accept-Encoding Accept-Language Authorization Baggage Cache-Control
	Connection Content-Encoding Content-Length Content-Type Cookie Dnt Expect Forwarded From Idempotency-Key If-Match
	If-Modified-Since If-None-Match If-Range If-Unmodified-Since Origin Pragma Priority Range Referer Sec-Ch-Ua
	Sec-Ch-Ua-Mobile Sec-Ch-Ua-Platform Sec-Fetch-Dest Sec-Fetch-Mode Sec-Fetch-Site Sec-Fetch-User Sec-Gpc Te Traceparent
	Tracestate Trailer Transfer-Encoding Upgrade-Insecure-Requests User-Agent Via X-Api-Key X-Correlation-Id X-Csrf-Token
	X-Forwarded-For X-Forwarded-Host X-Forwarded-Port X-Forwarded-Prefix X-Forwarded-Proto X-Forwarded-Server
	X-Forwarded-Uri X-Real-Ip X-Request-Id X-Requested-With X-User`)

// closed is where nothing can be written. To write all but the harmless headers of a request to it fails if there is one:
// so one native call finds that nothing need be looked at.
var closed = closedPipe()

func closedPipe() io.Writer {
	_, w := io.Pipe()
	_ = w.Close() // which never fails
	return w
}

// hasAlias tells whether one of header's names is an alias.
func hasAlias(h *handler, header http.Header) bool {
	for name := range header {
		if !h.harmless[name] && h.aliases.MatchString(name) {
			return true
		}
	}
	return false
}
