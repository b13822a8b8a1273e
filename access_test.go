package idem

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

func TestTokensAreOfOneLoginAndHaveAnEnd(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	who := &visitor{name: "boss", digest: digest("pass word")}
	token := tokenOf(who, now)
	if tokenOf(who, now) == token {
		t.Errorf("%s is given twice", token)
	}
	for _, c := range []struct {
		what  string
		who   *visitor
		token string
		after time.Duration
		want  bool
	}{
		{"now", who, token, 0, true},
		{"half a day later", who, token, tokenHours * time.Hour, true},
		{"a day later", who, token, 24 * time.Hour, false},
		{"from the future", who, token, -2 * time.Hour, false},
		{"another name", &visitor{name: "chief", digest: who.digest}, token, 0, false},
		{"another password", &visitor{name: "boss", digest: digest("other")}, token, 0, false},
		{"none", who, "", 0, false},
		{"an hour alone", who, "500000", 0, false},
		{"cut", who, token[:len(token)-1], 0, false},
		{"an hour moved on", who, "500001" + token[6:], 0, false},
		{"another spelling of its hour", who, "+" + token, 0, false},
	} {
		if got := validToken(c.who, c.token, now.Add(c.after)); got != c.want {
			t.Errorf("%s: %t, want %t", c.what, got, c.want)
		}
	}
}

func TestWrongLoginsTakeBoundedMemory(t *testing.T) {
	w := &throttle{}
	for i := range 20 * mostAddresses {
		w.take(fmt.Sprint(i))
		if len(w.tried) > mostAddresses+1 {
			t.Fatalf("%d addresses are remembered", len(w.tried))
		}
	}
}

func TestEncodingsThatAreAccepted(t *testing.T) {
	for header, want := range map[string]bool{
		"gzip": true, "gzip, deflate, br, zstd": true, "br,GZIP;q=0.5": true, "deflate, gzip;q=1.0, *;q=0.5": true, "gzip; q=0.001": true,
		"": false, "identity": false, "gzip;q=0": false, "gzip;q=0.000, br": false, "x-gzip": false, "br": false, "gzipped": false,
	} {
		if got := gzipAccepted.MatchString(header); got != want {
			t.Errorf("%q: %t", header, got)
		}
	}
}

func TestAddressesThatCountTogether(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.1:1234": "192.0.2.1", "[::ffff:192.0.2.1]:1234": "192.0.2.1", "[2001:db8:1:2:3:4:5:6]:1": "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff::1]:9": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64", "@": "@", "pipe:1": "pipe",
	} {
		if got := addressOf(&http.Request{RemoteAddr: remote}); got != want {
			t.Errorf("%s counts as %s, want %s", remote, got, want)
		}
	}
}
