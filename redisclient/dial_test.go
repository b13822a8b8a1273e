package redisclient

import (
	"strings"
	"testing"
)

// TestAPasswordIsInNoLoginError has servers that do not know AUTH, which quote what they were sent.
func TestAPasswordIsInNoLoginError(t *testing.T) {
	for _, quoted := range []string{
		"'AUTH', with args beginning with: 'shop' 's3cret' ",   // from 7.0 on
		"`AUTH`, with args beginning with: `shop`, `s3cret`, ", // before
	} {
		s := startFake(t, func([]string) string { return "-ERR unknown command " + quoted + "\r\n" })
		opts := fast(s.address)
		opts.Username, opts.Password = "shop", "s3cret"
		_, err := dialConn(&opts, s.address)
		if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.HasPrefix(err.Error(), "AUTH: ERR unknown command") || stateFrom(err) != refusing {
			t.Errorf("the error for %q is %v", quoted, err)
		}
	}
}
