package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Settings of TLS towards the service.
type clientTLS struct {
	enabled    bool
	ca         string
	cert       string
	key        string
	serverName string
}

// The credentials of connections to the service.
func (c clientTLS) credentials() (credentials.TransportCredentials, error) {
	if !c.enabled && c.ca == "" && c.cert == "" && c.key == "" && c.serverName == "" {
		return insecure.NewCredentials(), nil
	}
	if (c.cert == "") != (c.key == "") {
		return nil, errors.New("-grpc-cert and -grpc-key belong together")
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.serverName}
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate", c.ca)
		}
	}
	if c.cert != "" {
		certificate := &reloaded{cert: c.cert, key: c.key}
		if _, err := certificate.load(); err != nil {
			return nil, err
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return certificate.load()
		}
	}
	return credentials.NewTLS(config), nil
}

// Interval of looking for a renewed certificate.
const reloadInterval = 5 * time.Second

// A certificate that is read again when its file changes. While the new files cannot be
// read, or do not fit together, the last certificate stays in use.
type reloaded struct {
	cert, key string

	mutex    sync.Mutex
	last     *tls.Certificate
	checked  time.Time
	modified [2]time.Time
}

func (r *reloaded) load() (*tls.Certificate, error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.last != nil && time.Since(r.checked) < reloadInterval {
		return r.last, nil
	}
	r.checked = time.Now()
	modified := [2]time.Time{modifiedAt(r.cert), modifiedAt(r.key)}
	if r.last != nil && modified == r.modified {
		return r.last, nil
	}
	r.modified = modified
	pair, err := tls.LoadX509KeyPair(r.cert, r.key)
	if err != nil && r.last == nil {
		return nil, err
	}
	if err != nil {
		log.Printf("the changed certificate cannot be used; the last one stays in use: %v", err)
		return r.last, nil
	}
	r.last = &pair
	return r.last, nil
}

func modifiedAt(file string) time.Time {
	info, err := os.Stat(file)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}
