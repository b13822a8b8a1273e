package idem

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// TestWhatIsSaidOfARequestIsBounded, since clients invent paths, and methods where a pattern protects every method.
func TestWhatIsSaidOfARequestIsBounded(t *testing.T) {
	l := newLogger("idem@file", "error")
	for _, r := range []*http.Request{
		{Method: strings.Repeat("M", 1<<20), URL: &url.URL{Path: "/"}},
		{Method: "POST", URL: &url.URL{Path: "/" + strings.Repeat("p", 1<<20)}},
	} {
		l.printLimitedAbout(levelWarn, "message", r, "identity")
	}
	for text := range l.said {
		if len(text) > 2*longestPath || !strings.Contains(text, "…") {
			t.Errorf("%d bytes are said: %.100s", len(text), text)
		}
	}
	if len(l.said) != 2 {
		t.Errorf("%d requests are told of", len(l.said))
	}
}
